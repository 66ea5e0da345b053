/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_CNI_VERSION_H
#define SOCKMESH_CNI_VERSION_H

/* The versions of the CNI specification that the plugin speaks, oldest first, and its errors. */
struct error;

enum cni_version {
	CNI_0_3_0,
	CNI_0_3_1,
	CNI_0_4_0, /* CHECK */
	CNI_1_0_0, /* "ips" entries lose "version" */
	CNI_1_1_0, /* GC, STATUS */
	CNI_VERSION_COUNT_,
	CNI_VERSION_NEWEST = CNI_1_1_0,
};

/* "code" of an error: below 100 from the specification, above our own (docs/sockmesh-cni.8). */
enum cni_error_code {
	CNI_ERROR_VERSION = 1,
	CNI_ERROR_ENVIRONMENT = 4,
	CNI_ERROR_IO = 5,
	CNI_ERROR_DECODE = 6,
	CNI_ERROR_CONFIG = 7,
	CNI_ERROR_TRY_LATER = 11,
	CNI_ERROR_NOT_AVAILABLE = 50, /* STATUS only */
	CNI_ERROR_OTHER = 100,
	CNI_ERROR_BAD_ANNOTATION = 110,
	CNI_ERROR_UNSUPPORTED = 111,
	CNI_ERROR_KERNEL = 112,
	CNI_ERROR_DIFFERENCE = 113,
};

const char *cni_version_name(enum cni_version version); /* "1.0.0" */

/* -EPROTONOSUPPORT names the text; the versions that would do are for the caller to list. */
int cni_version_parse(const char *text, enum cni_version *ret, struct error *err);

#endif
