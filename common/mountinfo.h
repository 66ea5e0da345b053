/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_MOUNTINFO_H
#define SOCKMESH_MOUNTINFO_H

/* Lines of /proc/PID/mountinfo (proc(5)). Pure. */

/*
 * The mount point of a line whose file system type is `fstype`, with its escapes undone; NULL when
 * it is another. ret_root may be NULL; for nsfs the root is the namespace, "net:[4026531840]". Both
 * point into `line`, which is cut up.
 */
char *mountinfo_mount_point(char *line, const char *fstype, char **ret_root);

#endif
