/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_SCOPED_H
#define SOCKMESH_SCOPED_H

/*
 * Ownership by scope. Whoever holds a scoped_ variable owns it until the end of the block; handing
 * it over is visible as take_fd() or take_ptr(). A scoped variable must be initialised where it is
 * declared.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define scoped(fn)  __attribute__((cleanup(fn)))
#define scoped_fd   scoped(scoped_close)
#define scoped_free scoped(scoped_free_at)
#define scoped_file scoped(scoped_fclose)
#define scoped_dir  scoped(scoped_closedir)

#define take_ptr(p)                                                                                \
	({                                                                                         \
		__typeof__(p) out_ = (p);                                                          \
		(p) = NULL;                                                                        \
		out_;                                                                              \
	})

static inline void scoped_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static inline int take_fd(int *fd)
{
	int out = *fd;

	*fd = -1;
	return out;
}

static inline void scoped_free_at(void *p)
{
	free(*(void **)p);
}

static inline void scoped_fclose(FILE **f)
{
	if (*f)
		fclose(*f);
}

static inline void scoped_closedir(DIR **d)
{
	if (*d)
		closedir(*d);
}

#endif
