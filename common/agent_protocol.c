/* SPDX-License-Identifier: Apache-2.0 */
#include "agent_protocol.h"

#include "error.h"
#include "json.h"
#include "scoped.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum {
	NAME_MAX_BYTES = 253, /* RFC 1123 subdomain, as Kubernetes limits names */
	ID_MAX_BYTES = 256,
	IF_NAME_MAX_BYTES = 15, /* IFNAMSIZ - 1 */
	IPS_MAX = 64,
	ADVISE_SECONDS_MAX = 3600,
	PART_OVERHEAD = 64, /* {"v":1,"more":false,"part":""}, generously */
};

/* uid_t without (uid_t)-1, which setresuid(2) reads as "leave it". */
static const json_int_t id_max = UINT32_MAX - 1;

static const char *const op_names[AGENT_OP_COUNT_] = {
	[AGENT_ADD] = "add",
	[AGENT_DEL] = "del",
	[AGENT_CHECK] = "check",
	[AGENT_GC] = "gc",
	[AGENT_STATUS] = "status",
	[AGENT_PODS] = "pods",
	[AGENT_POD] = "pod",
	[AGENT_EXPLAIN] = "explain",
	[AGENT_PROBE] = "probe",
	[AGENT_FLOWS] = "flows",
	[AGENT_ACCELERATE] = "accelerate",
};

static const char *const code_names[AGENT_CODE_COUNT_] = {
	[AGENT_CODE_NONE] = "none",
	[AGENT_CODE_VERSION] = "version",
	[AGENT_CODE_BAD_REQUEST] = "bad-request",
	[AGENT_CODE_BAD_ANNOTATION] = "bad-annotation",
	[AGENT_CODE_UNSUPPORTED] = "unsupported",
	[AGENT_CODE_NOT_FOUND] = "not-found",
	[AGENT_CODE_NOT_READY] = "not-ready",
	[AGENT_CODE_BUSY] = "busy",
	[AGENT_CODE_LIMIT] = "limit",
	[AGENT_CODE_KERNEL] = "kernel",
};

const char *agent_op_name(enum agent_op op)
{
	return (unsigned)op < AGENT_OP_COUNT_ ? op_names[op] : "unknown";
}

const char *agent_code_name(enum agent_code code)
{
	return (unsigned)code < AGENT_CODE_COUNT_ ? code_names[code] : "unknown";
}

static bool op_has_attachment(enum agent_op op)
{
	return op == AGENT_ADD || op == AGENT_DEL || op == AGENT_CHECK;
}

static bool op_has_pod(enum agent_op op)
{
	return op == AGENT_POD || op == AGENT_EXPLAIN || op == AGENT_FLOWS;
}

void agent_request_done(struct agent_request *req)
{
	free(req->container_id);
	free(req->if_name);
	free(req->network);
	free(req->netns);
	free(req->pod_namespace);
	free(req->pod_name);
	free(req->pod_uid);
	free(req->ips);
	json_decref(req->annotations);
	json_decref(req->labels);
	free(req->cgroup);
	for (size_t i = 0; i < req->n_valid; i++) {
		free(req->valid[i].container_id);
		free(req->valid[i].if_name);
	}
	free(req->valid);
	free(req->interface);
	free(req->advise);
	*req = (struct agent_request){.uid = -1, .gid = -1};
}

/* ---- decoding: single values ---- */

static bool is_alphanumeric(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

/* A value check: NULL when it is good, else what is wrong with it. */
typedef const char *value_check(const char *value);

static const char *check_container_id(const char *value)
{
	static const char problem[] = "not letters, digits, \"_\", \".\" and \"-\" as CNI wants";

	if (!is_alphanumeric(value[0]))
		return problem;
	for (const char *s = value; *s; s++)
		if (!is_alphanumeric(*s) && !strchr("_.-", *s))
			return problem;
	return NULL;
}

/* What the CNI specification and the kernel's dev_valid_name() refuse. */
static const char *check_if_name(const char *value)
{
	if (strcmp(value, ".") == 0 || strcmp(value, "..") == 0 ||
	    value[strcspn(value, "/: \t\n\v\f\r")] != '\0')
		return "not an interface name";
	return NULL;
}

static const char *check_plain_name(const char *value)
{
	return strchr(value, '/') ? "a name has no \"/\"" : NULL;
}

static const char *check_workload(const char *value)
{
	const char *slash = strchr(value, '/');

	return slash && slash != value && slash[1] && !strchr(slash + 1, '/')
		       ? NULL
		       : "not NAMESPACE/NAME";
}

static const char *check_cgroup(const char *value)
{
	if (value[0] != '/')
		return "not a path that starts with \"/\"";
	for (const char *s = value; (s = strstr(s, "/..")); s += 3)
		if (s[3] == '/' || s[3] == '\0')
			return "a path with \"..\"";
	return NULL;
}

/* Copies a string member. Absent, null and empty leave *ret alone. */
static int take_string(const json_t *obj, const char *name, const char *where, size_t max_bytes,
		       value_check *check, char **ret, struct error *err)
{
	const char *value = NULL, *problem;
	int r;

	r = json_get_string(obj, name, where, &value, err);
	if (r < 0)
		return r;
	if (!value || !*value)
		return 0;
	if (strlen(value) > max_bytes)
		return error_set(err, EINVAL, "%s%s \"%.32s...\" is longer than %zu bytes", where,
				 name, value, max_bytes);
	problem = check ? check(value) : NULL;
	if (problem)
		return error_set(err, EINVAL, "%s%s \"%s\": %s", where, name, value, problem);
	*ret = strdup(value);
	return *ret ? 0 : error_set(err, ENOMEM, "decode a request");
}

static int take_attachment(const json_t *obj, const char *where, char **ret_container_id,
			   char **ret_if_name, struct error *err)
{
	int r;

	r = take_string(obj, "containerId", where, ID_MAX_BYTES, check_container_id,
			ret_container_id, err);
	if (r < 0)
		return r;
	return take_string(obj, "ifName", where, IF_NAME_MAX_BYTES, check_if_name, ret_if_name,
			   err);
}

static int missing(const char *what, enum agent_op op, struct error *err)
{
	return error_set(err, EINVAL, "%s is missing, \"%s\" needs it", what, agent_op_name(op));
}

/* ---- decoding: members of a request ---- */

static int decode_version(const json_t *body, int *ret, struct error *err)
{
	json_int_t version = 0;
	int r;

	r = json_get_integer(body, "v", "", 1, INT_MAX, &version, err);
	if (r < 0)
		return r;
	if (version == 0)
		return error_set(err, EINVAL, "v, the protocol version, is missing");
	*ret = (int)version;
	return 0;
}

static int decode_op(const json_t *body, enum agent_op *ret, struct error *err)
{
	const char *name = NULL;
	int r;

	r = json_get_string(body, "op", "", &name, err);
	if (r < 0)
		return r;
	if (!name)
		return error_set(err, EINVAL, "op is missing");
	for (unsigned i = 0; i < AGENT_OP_COUNT_; i++) {
		if (strcmp(name, op_names[i]) == 0) {
			*ret = (enum agent_op)i;
			return 0;
		}
	}
	return error_set(err, EINVAL, "op \"%.64s\" is unknown", name);
}

static int decode_pod(const json_t *body, struct agent_request *req, struct error *err)
{
	json_t *pod = NULL;
	int r;

	r = json_get_object(body, "pod", "", &pod, err);
	if (r == 0)
		r = take_string(pod, "namespace", "pod.", NAME_MAX_BYTES, check_plain_name,
				&req->pod_namespace, err);
	if (r == 0)
		r = take_string(pod, "name", "pod.", NAME_MAX_BYTES, check_plain_name,
				&req->pod_name, err);
	if (r == 0)
		r = take_string(pod, "uid", "pod.", ID_MAX_BYTES, check_plain_name, &req->pod_uid,
				err);
	if (r == 0 && op_has_pod(req->op)) {
		if (!req->pod_namespace)
			return missing("pod.namespace", req->op, err);
		if (!req->pod_name)
			return missing("pod.name", req->op, err);
	}
	return r;
}

/* "ADDR/LEN" with the host bits kept, which ip_prefix_parse() alone would clear. */
static int parse_pod_address(const char *text, struct agent_address *ret, struct error *err)
{
	const char *slash = strchrnul(text, '/');
	char address_text[IP_ADDRESS_TEXT_MAX];
	struct ip_address address;
	struct ip_prefix prefix;
	bool v4;
	int r;

	r = ip_prefix_parse(text, &prefix, err);
	if (r < 0)
		return r;
	if (!*slash)
		return error_set(err, EINVAL, "\"%s\" has no prefix length", text);
	/* ip_prefix_parse() took it, so it fits. */
	memcpy(address_text, text, (size_t)(slash - text));
	address_text[slash - text] = '\0';
	r = ip_address_parse(address_text, &address, err);
	if (r < 0)
		return r;
	v4 = ip_address_is_v4(&address);
	if (v4 && prefix.length < IP_V4_PREFIX_BITS)
		return error_set(err, EINVAL, "\"%s\": the prefix is wider than IPv4", text);
	ret->address = address;
	ret->prefix_length = (uint8_t)(v4 ? prefix.length - IP_V4_PREFIX_BITS : prefix.length);
	return 0;
}

static int decode_ips(const json_t *body, struct agent_request *req, struct error *err)
{
	json_t *ips = NULL, *value;
	size_t i, n;
	int r;

	r = json_get_array(body, "ips", "", &ips, err);
	if (r < 0)
		return r;
	n = json_array_size(ips);
	if (n == 0)
		return 0;
	if (n > IPS_MAX)
		return error_set(err, EINVAL, "ips has %zu addresses, the limit is %d", n, IPS_MAX);
	req->ips = calloc(n, sizeof(*req->ips));
	if (!req->ips)
		return error_set(err, ENOMEM, "decode a request");
	json_array_foreach (ips, i, value) {
		char found[64];

		if (!json_is_string(value))
			return error_set(err, EINVAL, "ips[%zu] is %s, not a string", i,
					 json_describe(value, found, sizeof(found)));
		r = parse_pod_address(json_string_value(value), &req->ips[i], err);
		if (r < 0)
			return error_wrap(err, "ips[%zu]", i);
	}
	req->n_ips = n;
	return 0;
}

static int decode_string_map(const json_t *body, const char *name, json_t **ret, struct error *err)
{
	json_t *map = NULL;
	int r;

	r = json_get_object(body, name, "", &map, err);
	if (r < 0 || !map)
		return r;
	r = json_check_string_map(map, name, err);
	if (r < 0)
		return r;
	*ret = json_incref(map);
	return 0;
}

/* Without the list, every attachment would be taken for a left-over: so it must be there. */
static int decode_valid(const json_t *body, struct agent_request *req, struct error *err)
{
	json_t *valid = NULL, *value;
	size_t i;
	int r;

	r = json_get_array(body, "valid", "", &valid, err);
	if (r < 0)
		return r;
	if (!valid)
		return missing("valid", req->op, err);
	req->valid = calloc(json_array_size(valid) + 1, sizeof(*req->valid));
	if (!req->valid)
		return error_set(err, ENOMEM, "decode a request");
	json_array_foreach (valid, i, value) {
		struct agent_attachment *one = &req->valid[i];
		char where[32], found[64];

		if (!json_is_object(value))
			return error_set(err, EINVAL, "valid[%zu] is %s, not an object", i,
					 json_describe(value, found, sizeof(found)));
		snprintf(where, sizeof(where), "valid[%zu].", i);
		req->n_valid = i + 1;
		r = take_attachment(value, where, &one->container_id, &one->if_name, err);
		if (r < 0)
			return r;
		if (!one->container_id || !one->if_name)
			return error_set(err, EINVAL, "%s%s is missing", where,
					 one->container_id ? "ifName" : "containerId");
	}
	return 0;
}

static int decode_explain(const json_t *body, struct agent_request *req, struct error *err)
{
	const char *to = NULL;
	json_int_t uid = -1, gid = -1;
	int r;

	r = json_get_string(body, "to", "", &to, err);
	if (r < 0)
		return r;
	if (!to)
		return missing("to", req->op, err);
	r = ip_endpoint_parse(to, &req->to, &req->to_port, err);
	if (r < 0)
		return error_wrap(err, "to");
	req->have_to = true;
	r = json_get_integer(body, "uid", "", 0, id_max, &uid, err);
	if (r == 0)
		r = json_get_integer(body, "gid", "", 0, id_max, &gid, err);
	if (r == 0)
		r = json_get_bool(body, "udp", "", &req->udp, err);
	if (r == 0)
		r = take_string(body, "interface", "", IF_NAME_MAX_BYTES, check_if_name,
				&req->interface, err);
	req->uid = uid;
	req->gid = gid;
	return r;
}

static int decode_accelerate(const json_t *body, struct agent_request *req, struct error *err)
{
	json_int_t seconds = 0;
	int r;

	r = take_string(body, "advise", "", 2 * NAME_MAX_BYTES + 1, check_workload, &req->advise,
			err);
	if (r == 0)
		r = json_get_integer(body, "seconds", "", 1, ADVISE_SECONDS_MAX, &seconds, err);
	req->advise_seconds = (unsigned)seconds;
	return r;
}

static int decode_body(const json_t *body, struct agent_request *req, struct error *err)
{
	int r;

	r = decode_op(body, &req->op, err);
	if (r == 0)
		r = take_attachment(body, "", &req->container_id, &req->if_name, err);
	if (r == 0 && op_has_attachment(req->op)) {
		if (!req->container_id)
			return missing("containerId", req->op, err);
		if (!req->if_name)
			return missing("ifName", req->op, err);
	}
	if (r == 0)
		r = take_string(body, "network", "", ID_MAX_BYTES, NULL, &req->network, err);
	if (r == 0)
		r = take_string(body, "netns", "", PATH_MAX - 1, NULL, &req->netns, err);
	if (r == 0)
		r = decode_pod(body, req, err);
	if (r == 0)
		r = decode_ips(body, req, err);
	if (r == 0)
		r = decode_string_map(body, "annotations", &req->annotations, err);
	if (r == 0)
		r = decode_string_map(body, "labels", &req->labels, err);
	if (r == 0)
		r = take_string(body, "cgroup", "", PATH_MAX - 1, check_cgroup, &req->cgroup, err);
	if (r == 0 && req->op == AGENT_GC)
		r = decode_valid(body, req, err);
	if (r == 0 && req->op == AGENT_EXPLAIN)
		r = decode_explain(body, req, err);
	if (r == 0 && req->op == AGENT_ACCELERATE)
		r = decode_accelerate(body, req, err);
	return r;
}

/* One packet or text as an object. */
static int parse_object(const char *text, size_t size, const char *what, json_t **ret,
			struct error *err)
{
	char found[64];
	int r;

	r = json_parse(text, size, what, ret, err);
	if (r == 0 && !json_is_object(*ret))
		return error_set(err, EINVAL, "%s is %s, not an object", what,
				 json_describe(*ret, found, sizeof(found)));
	return r;
}

int agent_request_decode(const char *packet, size_t size, struct agent_request *ret,
			 struct error *err)
{
	struct agent_request req = {.uid = -1, .gid = -1};
	scoped_json json_t *body = NULL;
	int r;

	*ret = req;
	if (size > AGENT_PACKET_MAX)
		return error_set(err, EINVAL, "request of %zu bytes, the limit is %d", size,
				 AGENT_PACKET_MAX);
	r = parse_object(packet, size, "request", &body, err);
	if (r == 0)
		r = decode_version(body, &req.version, err);
	if (r < 0)
		return r;
	if (req.version > AGENT_PROTOCOL_VERSION) {
		ret->version = req.version;
		return error_set(err, EPROTONOSUPPORT,
				 "v is %d, the highest that is spoken here is %d", req.version,
				 AGENT_PROTOCOL_VERSION);
	}
	r = decode_body(body, &req, err);
	if (r < 0) {
		agent_request_done(&req);
		return r;
	}
	*ret = req;
	return 0;
}

/* ---- encoding ---- */

/* Takes value over. NULL is text that jansson refused: not UTF-8. */
static int put(json_t *obj, const char *name, json_t *value, struct error *err)
{
	if (!value)
		return error_set(err, EINVAL, "%s is not UTF-8 text", name);
	if (json_object_set_new(obj, name, value) < 0)
		return error_set(err, ENOMEM, "encode %s", name);
	return 0;
}

static int put_string(json_t *obj, const char *name, const char *text, struct error *err)
{
	return text ? put(obj, name, json_string(text), err) : 0;
}

static int put_attachment(json_t *obj, const char *container_id, const char *if_name,
			  struct error *err)
{
	int r = put_string(obj, "containerId", container_id, err);

	return r < 0 ? r : put_string(obj, "ifName", if_name, err);
}

static int put_pod(json_t *body, const struct agent_request *req, struct error *err)
{
	json_t *pod = json_object(); /* borrowed once it is in body */
	int r;

	if (!req->pod_namespace && !req->pod_name && !req->pod_uid) {
		json_decref(pod);
		return 0;
	}
	r = put(body, "pod", pod, err);
	if (r == 0)
		r = put_string(pod, "namespace", req->pod_namespace, err);
	if (r == 0)
		r = put_string(pod, "name", req->pod_name, err);
	if (r == 0)
		r = put_string(pod, "uid", req->pod_uid, err);
	return r;
}

static int put_ips(json_t *body, const struct agent_request *req, struct error *err)
{
	json_t *ips = json_array();
	int r;

	r = put(body, "ips", ips, err);
	for (size_t i = 0; r == 0 && i < req->n_ips; i++) {
		char address[IP_ADDRESS_TEXT_MAX], text[IP_PREFIX_TEXT_MAX];

		snprintf(text, sizeof(text), "%s/%u",
			 ip_address_format(&req->ips[i].address, address),
			 req->ips[i].prefix_length);
		if (json_array_append_new(ips, json_string(text)) < 0)
			r = error_set(err, ENOMEM, "encode ips");
	}
	return r;
}

static int put_valid(json_t *body, const struct agent_request *req, struct error *err)
{
	json_t *valid = json_array();
	int r;

	r = put(body, "valid", valid, err);
	for (size_t i = 0; r == 0 && i < req->n_valid; i++) {
		json_t *one = json_object();

		if (json_array_append_new(valid, one) < 0)
			r = error_set(err, ENOMEM, "encode valid");
		else
			r = put_attachment(one, req->valid[i].container_id, req->valid[i].if_name,
					   err);
	}
	return r;
}

static int put_explain(json_t *body, const struct agent_request *req, struct error *err)
{
	char to[IP_ENDPOINT_TEXT_MAX];
	int r = 0;

	if (req->have_to)
		r = put_string(body, "to", ip_endpoint_format(&req->to, req->to_port, to), err);
	if (r == 0 && req->uid >= 0)
		r = put(body, "uid", json_integer(req->uid), err);
	if (r == 0 && req->gid >= 0)
		r = put(body, "gid", json_integer(req->gid), err);
	if (r == 0 && req->udp)
		r = put(body, "udp", json_true(), err);
	if (r == 0)
		r = put_string(body, "interface", req->interface, err);
	return r;
}

static int put_accelerate(json_t *body, const struct agent_request *req, struct error *err)
{
	int r = put_string(body, "advise", req->advise, err);

	if (r == 0 && req->advise_seconds)
		r = put(body, "seconds", json_integer(req->advise_seconds), err);
	return r;
}

static int encode_body(json_t *body, const struct agent_request *req, struct error *err)
{
	int version = req->version ? req->version : AGENT_PROTOCOL_VERSION;
	int r;

	r = put(body, "v", json_integer(version), err);
	if (r == 0)
		r = put_string(body, "op", agent_op_name(req->op), err);
	if (r == 0)
		r = put_attachment(body, req->container_id, req->if_name, err);
	if (r == 0)
		r = put_string(body, "network", req->network, err);
	if (r == 0)
		r = put_string(body, "netns", req->netns, err);
	if (r == 0)
		r = put_pod(body, req, err);
	if (r == 0 && req->n_ips)
		r = put_ips(body, req, err);
	if (r == 0 && req->annotations)
		r = put(body, "annotations", json_incref(req->annotations), err);
	if (r == 0 && req->labels)
		r = put(body, "labels", json_incref(req->labels), err);
	if (r == 0)
		r = put_string(body, "cgroup", req->cgroup, err);
	if (r == 0 && req->op == AGENT_GC)
		r = put_valid(body, req, err);
	if (r == 0 && req->op == AGENT_EXPLAIN)
		r = put_explain(body, req, err);
	if (r == 0 && req->op == AGENT_ACCELERATE)
		r = put_accelerate(body, req, err);
	return r;
}

int agent_request_encode(const struct agent_request *req, char **ret_text, size_t *ret_size,
			 struct error *err)
{
	scoped_json json_t *body = json_object();
	scoped_free char *text = NULL;
	size_t size;
	int r;

	r = encode_body(body, req, err);
	if (r < 0)
		return r;
	text = json_to_text(body);
	if (!text)
		return error_set(err, ENOMEM, "encode a request");
	size = strlen(text);
	if (size > AGENT_PACKET_MAX)
		return error_set(err, E2BIG, "request \"%s\" of %zu bytes, the limit is %d",
				 agent_op_name(req->op), size, AGENT_PACKET_MAX);
	*ret_text = take_ptr(text);
	*ret_size = size;
	return 0;
}

/* ---- replies ---- */

json_t *agent_reply_ok(const json_t *extra)
{
	json_t *reply = json_object();

	json_object_set_new(reply, "v", json_integer(AGENT_PROTOCOL_VERSION));
	json_object_set_new(reply, "ok", json_true());
	/* Only what is missing: no caller can turn "ok" around. */
	if (extra)
		json_object_update_missing(reply, (json_t *)extra);
	return reply;
}

json_t *agent_reply_refusal(enum agent_code code, bool retry, const char *message)
{
	json_t *reply = json_object();

	json_object_set_new(reply, "v", json_integer(AGENT_PROTOCOL_VERSION));
	json_object_set_new(reply, "ok", json_false());
	json_object_set_new(reply, "code", json_string(agent_code_name(code)));
	/* An error text may be cut inside a character. */
	json_object_set_new(reply, "message", json_string_lossy(message));
	json_object_set_new(reply, "retry", json_boolean(retry));
	return reply;
}

void agent_reply_done(struct agent_reply *reply)
{
	free(reply->decision);
	free(reply->reason);
	free(reply->engine);
	free(reply->message);
	json_decref(reply->body);
	*reply = (struct agent_reply){0};
}

static int take_text(const json_t *body, const char *name, char **ret, struct error *err)
{
	return take_string(body, name, "", AGENT_ANSWER_MAX, NULL, ret, err);
}

static int decode_refusal(const json_t *body, struct agent_reply *reply, struct error *err)
{
	const char *code = NULL;
	int r;

	r = json_get_string(body, "code", "", &code, err);
	if (r < 0)
		return r;
	if (!code)
		return error_set(err, EINVAL, "code is missing");
	/* A code of a later version stays NONE; its message is still worth showing. */
	for (unsigned i = AGENT_CODE_NONE + 1; i < AGENT_CODE_COUNT_; i++)
		if (strcmp(code, code_names[i]) == 0)
			reply->code = (enum agent_code)i;
	r = take_text(body, "message", &reply->message, err);
	return r < 0 ? r : json_get_bool(body, "retry", "", &reply->retry, err);
}

static int decode_reply_body(const json_t *body, struct agent_reply *reply, struct error *err)
{
	int r;

	r = decode_version(body, &reply->version, err);
	if (r < 0)
		return r;
	if (!json_is_boolean(json_object_get(body, "ok")))
		return error_set(err, EINVAL, "ok is missing or not true or false");
	reply->ok = json_is_true(json_object_get(body, "ok"));
	if (!reply->ok)
		return decode_refusal(body, reply, err);
	r = take_text(body, "decision", &reply->decision, err);
	if (r == 0)
		r = take_text(body, "reason", &reply->reason, err);
	return r < 0 ? r : take_text(body, "engine", &reply->engine, err);
}

int agent_reply_decode(const char *text, size_t size, struct agent_reply *ret, struct error *err)
{
	struct agent_reply reply = {0};
	int r;

	*ret = reply;
	if (size > AGENT_ANSWER_MAX)
		return error_set(err, EINVAL, "reply of %zu bytes, the limit is %d", size,
				 AGENT_ANSWER_MAX);
	r = parse_object(text, size, "reply", &reply.body, err);
	if (r == 0) {
		r = decode_reply_body(reply.body, &reply, err);
		if (r < 0)
			error_wrap(err, "reply");
	}
	if (r < 0) {
		agent_reply_done(&reply);
		return r;
	}
	*ret = reply;
	return 0;
}

/* ---- replies of several packets ---- */

/* How much of text fits one part once it is a JSON string; never ends inside a character. */
static size_t part_size(const char *text, size_t size)
{
	size_t cost = 0, end = 0;

	for (size_t i = 0; i < size; i++) {
		if (((unsigned char)text[i] & 0xc0) != 0x80)
			end = i;
		/* Control characters do not occur: the text is JSON without line breaks. */
		cost += text[i] == '"' || text[i] == '\\' ? 2 : 1;
		if (cost > AGENT_PACKET_MAX - PART_OVERHEAD)
			return end;
	}
	return size;
}

static char *part_packet(const char *text, size_t size, bool more)
{
	scoped_json json_t *packet = json_object();

	if (json_object_set_new(packet, "v", json_integer(AGENT_PROTOCOL_VERSION)) < 0 ||
	    json_object_set_new(packet, "more", json_boolean(more)) < 0 ||
	    json_object_set_new(packet, "part", json_stringn(text, size)) < 0)
		return NULL;
	return json_to_text(packet);
}

static int append_packet(char ***packets, size_t *n, char *packet)
{
	char **grown = packet ? reallocarray(*packets, *n + 1, sizeof(*grown)) : NULL;

	if (!grown) {
		free(packet);
		return -ENOMEM;
	}
	grown[(*n)++] = packet;
	*packets = grown;
	return 0;
}

int agent_reply_packets(const json_t *reply, char ***ret_packets, size_t *ret_n, struct error *err)
{
	scoped_free char *text = json_to_text(reply);
	size_t size = text ? strlen(text) : 0, n = 0;
	char **packets = NULL;
	int r = 0;

	if (!text)
		return error_set(err, ENOMEM, "encode a reply");
	if (size > AGENT_ANSWER_MAX)
		return error_set(err, E2BIG, "reply of %zu bytes, the limit is %d", size,
				 AGENT_ANSWER_MAX);
	if (size <= AGENT_PACKET_MAX)
		r = append_packet(&packets, &n, take_ptr(text));
	for (size_t at = 0; text && r == 0 && at < size;) {
		size_t part = part_size(text + at, size - at);

		r = append_packet(&packets, &n, part_packet(text + at, part, at + part < size));
		at += part;
	}
	if (r < 0) {
		while (n > 0)
			free(packets[--n]);
		free(packets);
		return error_set(err, -r, "encode a reply");
	}
	*ret_packets = packets;
	*ret_n = n;
	return 0;
}
