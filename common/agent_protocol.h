/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_AGENT_PROTOCOL_H
#define SOCKMESH_AGENT_PROTOCOL_H

/*
 * The messages on <run-dir>/agent.sock, and their framing: SOCK_SEQPACKET, one JSON object a
 * packet, at most 64 KiB, the network namespace as one file descriptor in SCM_RIGHTS beside an
 * add, del or check. docs/architecture.md has the fields. Encoding and decoding are pure; the two
 * socket functions at the end are the only I/O.
 *
 * Versions: a request says the version it speaks in "v". An agent that cannot speak it answers
 * code "version" with the highest "v" that it can; the plugin then asks again in that version when
 * it knows it. Fields that one side does not know are ignored by it.
 */
#include "ip_address.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

enum {
	AGENT_PROTOCOL_VERSION = 1,	     /* the highest we speak, and for now the only one */
	AGENT_PACKET_MAX = 64 * 1024,	     /* bytes of JSON in one packet */
	AGENT_ANSWER_MAX = 64 * 1024 * 1024, /* bytes of a joined multi-packet answer */
};

enum agent_op {
	AGENT_ADD,
	AGENT_DEL,
	AGENT_CHECK,
	AGENT_GC,
	AGENT_STATUS,
	AGENT_PODS,
	AGENT_POD,
	AGENT_EXPLAIN,
	AGENT_PROBE,
	AGENT_FLOWS,
	AGENT_ACCELERATE,
	AGENT_OP_COUNT_,
};

enum agent_code { /* "code" of a refusal */
		  AGENT_CODE_NONE,
		  AGENT_CODE_VERSION,
		  AGENT_CODE_BAD_REQUEST,
		  AGENT_CODE_BAD_ANNOTATION,
		  AGENT_CODE_UNSUPPORTED,
		  AGENT_CODE_NOT_FOUND,
		  AGENT_CODE_NOT_READY,
		  AGENT_CODE_BUSY,
		  AGENT_CODE_LIMIT,
		  AGENT_CODE_KERNEL,
		  AGENT_CODE_COUNT_,
};

const char *agent_op_name(enum agent_op op);
const char *agent_code_name(enum agent_code code); /* "bad-request" and so on */

/* One address of the pod with the prefix length of its subnet, host bits kept. */
struct agent_address {
	struct ip_address address;
	uint8_t prefix_length; /* 0..32 for IPv4, 0..128 for IPv6 */
};

/* A decoded request. Strings are owned; absent ones are NULL. */
struct agent_request {
	int version;
	enum agent_op op;
	char *container_id; /* add del check */
	char *if_name;	    /* add del check */
	char *network;	    /* the CNI network's name; NULL: a plugin that does not say */
	char *netns;	    /* path, for messages only: the fd is what counts */
	char *pod_namespace, *pod_name, *pod_uid;
	struct agent_address *ips;
	size_t n_ips;
	json_t *annotations; /* object of strings, or NULL when the plugin does not know them */
	json_t *labels;	     /* the same */
	char *cgroup;	     /* relative to the cgroup2 root, starting with '/'; NULL unknown */

	/* gc: the attachments of `network` that are still valid */
	struct agent_attachment {
		char *container_id, *if_name;
	} * valid;
	size_t n_valid;

	/* explain */
	struct ip_address to;
	uint16_t to_port;
	bool have_to;
	bool udp;
	int64_t uid, gid; /* -1: not given */
	char *interface;  /* it leaves by; NULL: not given */

	/* accelerate */
	char *advise;		 /* the workload to watch, "NAMESPACE/NAME"; NULL: only tell */
	unsigned advise_seconds; /* 0: not given */
};

/* Frees what it holds, not the struct; fine on a zeroed one. */
void agent_request_done(struct agent_request *req);

/*
 * Decodes one packet. A "v" above AGENT_PROTOCOL_VERSION is -EPROTONOSUPPORT with ret->version
 * set; everything else that is wrong is -EINVAL and names the field and the value. *ret needs
 * agent_request_done() only on success. Limits: names 253 bytes, ids 256, 64 ips, paths PATH_MAX,
 * NUL and '/' refused in ids and interface names. An empty string is as good as an absent one.
 */
int agent_request_decode(const char *packet, size_t size, struct agent_request *ret,
			 struct error *err);

/* The JSON text, owned by the caller. -E2BIG above AGENT_PACKET_MAX. */
int agent_request_encode(const struct agent_request *req, char **ret_text, size_t *ret_size,
			 struct error *err);

/* Refusals and simple answers. `extra` (may be NULL) is merged in and stays the caller's. */
json_t *agent_reply_ok(const json_t *extra);
json_t *agent_reply_refusal(enum agent_code code, bool retry, const char *message);

/* A decoded reply to add, del, check, gc, status. Strings are owned. */
struct agent_reply {
	int version;
	bool ok;
	char *decision, *reason, *engine; /* ok */
	enum agent_code code;		  /* !ok; NONE for a code that this version lacks */
	char *message;
	bool retry;
	json_t *body; /* the whole object */
};
void agent_reply_done(struct agent_reply *reply);
int agent_reply_decode(const char *text, size_t size, struct agent_reply *ret, struct error *err);

/*
 * Splits a reply whose text is over 64 KiB into packets: {"v":1,"more":true,"part":"<text>"} ...
 * {"v":1,"more":false,"part":"<text>"}; the parts joined are the reply's JSON. The array and its
 * strings are the caller's to free.
 */
int agent_reply_packets(const json_t *reply, char ***ret_packets, size_t *ret_n, struct error *err);

/* Sends one packet with fd attached (or -1). -EAGAIN is possible on a non-blocking socket. */
int agent_packet_send(int sock, const char *text, size_t size, int fd, struct error *err);

/*
 * Receives one packet into buf (at least AGENT_PACKET_MAX + 1 bytes, NUL added). *ret_fd is the
 * attached descriptor, close-on-exec, or -1; more than one is refused and all are closed. Returns
 * 0 with *ret_size 0 at end of file. -EMSGSIZE when the packet was longer, -EAGAIN as send.
 */
int agent_packet_receive(int sock, char *buf, size_t buf_size, size_t *ret_size, int *ret_fd,
			 struct error *err);

/*
 * Client side, for the plugin and sockmeshctl: connects to <run-dir>/agent.sock, sends, and joins
 * a multi-packet answer, all within timeout_ms (monotonic). The errno tells apart: ECONNREFUSED,
 * ENOENT, EACCES (not there), ETIMEDOUT (hangs), ECONNRESET (died on the way).
 */
int agent_call(const char *run_dir, const char *request, size_t size, int fd, int timeout_ms,
	       char **ret_text, size_t *ret_size, struct error *err);

#endif
