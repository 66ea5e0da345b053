/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_ZDS_CODEC_H
#define SOCKMESH_ZDS_CODEC_H

/*
 * Packets of ZDS, the protocol by which ztunnel learns the pods that it serves: one protobuf
 * message each, see zds.proto. Both directions of every message, so that tests and fuzzers can
 * read what the agent writes. Pure.
 */
#include <stddef.h>
#include <stdint.h>

struct error;

enum {
	ZDS_REQUEST_MAX = 1024,	   /* ztunnel's receive buffer: more would be cut, and refused */
	ZDS_RESPONSE_MAX = 65536,  /* ours, for errors with a long chain of causes */
	ZDS_UID_MAX = 128,	   /* Kubernetes' have 36, those of static pods 32 */
	ZDS_ERROR_TEXT_SIZE = 512, /* what is kept of ztunnel's error, NUL included */
	ZDS_VERSION = 1,
};

struct zds_pod {
	const char *uid, *name, *ns, *service_account;
};

enum zds_request_kind { ZDS_ADD, ZDS_KEEP, ZDS_DEL, ZDS_SNAPSHOT_SENT };

struct zds_request {
	enum zds_request_kind kind;
	struct zds_pod pod; /* ADD: all of it; KEEP, DEL: uid; SNAPSHOT_SENT: nothing */
	void *message;	    /* a decoded request's, holds the strings */
};

struct zds_packet {
	size_t size;
	uint8_t data[ZDS_REQUEST_MAX];
};

/*
 * -EINVAL: a field that ztunnel could not use or that would end it (empty, or no name of
 * Kubernetes'). -EMSGSIZE: longer than ZDS_REQUEST_MAX. The error names the pod.
 */
int zds_request_encode(const struct zds_request *req, struct zds_packet *ret, struct error *err);

/* -EBADMSG: not a request that zds_request_encode() could have written, but for unknown fields. */
int zds_request_decode(const void *data, size_t size, struct zds_request *ret, struct error *err);
void zds_request_done(struct zds_request *req);

/* error "" says that it was done. -EMSGSIZE: longer than `size`, the room in buf. */
int zds_response_encode(const char *error, uint8_t *buf, size_t size, size_t *ret_size,
			struct error *err);

/* ret_error: "" when it was done, else ztunnel's text, cut to its size. -EBADMSG: no response. */
int zds_response_decode(const void *data, size_t size, char ret_error[static ZDS_ERROR_TEXT_SIZE],
			struct error *err);

int zds_hello_encode(int version, struct zds_packet *ret, struct error *err);
int zds_hello_decode(const void *data, size_t size, int *ret_version, struct error *err);

#endif
