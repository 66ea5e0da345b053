/* SPDX-License-Identifier: Apache-2.0 */
#include "uninstall.h"

#include "accelerate.h"
#include "error.h"
#include "log.h"
#include "options.h"
#include "redirect.h"
#include "registration.h"
#include "run_dir.h"
#include "scoped.h"

#include <errno.h>
#include <stdlib.h>

static void free_pods(struct redirect_pod *pods, size_t n)
{
	for (size_t i = 0; i < n; i++)
		close(pods[i].netns_fd);
	free(pods);
}

int uninstall(const struct options *options, struct error *err)
{
	struct redirect_pod *pods = NULL;
	struct error accelerator = {0};
	scoped_fd int lock = -1;
	size_t n = 0;
	int left, r = run_dir_lock(options->run_dir, &lock, err);

	/* Without a run directory there may still be pins. */
	if (r && r != -ENOENT)
		return r == -EBUSY ? error_wrap(err, "stop the agent first") : r;
	r = registration_saved_pods(options->run_dir, &pods, &n, err);
	if (r) {
		/* A file that cannot be read must not keep the pins in place for ever. */
		log_error(LOG_WARN, err, "the state file does not tell which pods there are", NULL);
		n = 0;
	}
	/* First: its pins are in the engine's directory. What it leaves must not keep the rest. */
	left = accelerate_uninstall(options->redirect.bpffs_dir, &accelerator);
	r = left == -EBUSY ? left : redirect_uninstall(&options->redirect, pods, n, err);
	free_pods(pods, n);
	if (left && (!r || r == left)) {
		*err = accelerator;
		r = left;
	}
	return r ? r : run_dir_remove(options->run_dir, err);
}
