/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_UNINSTALL_H
#define SOCKMESH_UNINSTALL_H

/*
 * `sockmesh-agent --uninstall`: removes everything that agents with these directories left: pins,
 * links, changes in pods' namespaces, the run directory. Idempotent.
 */
struct error;
struct options;

/* -EBUSY while an agent holds the run directory. */
int uninstall(const struct options *options, struct error *err);

#endif
