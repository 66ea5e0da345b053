/* SPDX-License-Identifier: Apache-2.0 */
#include "pod_state.h"

#include "error.h"
#include "json.h"
#include "pod_table.h"
#include "scoped.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *const mode_names[] = {
	[POD_SKIP] = "skip", [POD_SIDECAR] = "redirect", [POD_AMBIENT] = "ambient"};
/* Of POD_INVALID_DROP_UNSAID there is nothing to write. */
static const char *const invalid_drop_names[] = {
	[POD_INVALID_DROP_NO] = "no", [POD_INVALID_DROP_YES] = "yes"};
enum {
	N_INVALID_DROPS = sizeof(invalid_drop_names) / sizeof(invalid_drop_names[0]),
	N_MODES = sizeof(mode_names) / sizeof(mode_names[0]),
	IPS_MAX = 64, /* as the protocol's */
	REASON_MAX = 256,
};

/* ---- writing -------------------------------------------------------------------------------- */

static json_t *ips_json(const struct pod *pod)
{
	json_t *ips = json_array();

	for (size_t i = 0; ips && i < pod->n_ips; i++) {
		char text[IP_ADDRESS_TEXT_MAX + 4], address[IP_ADDRESS_TEXT_MAX];

		snprintf(text, sizeof(text), "%s/%u",
			 ip_address_format(&pod->ips[i].address, address),
			 pod->ips[i].prefix_length);
		if (json_array_append_new(ips, json_string(text)) < 0) {
			json_decref(ips);
			return NULL;
		}
	}
	return ips;
}

/* A cookie has 64 bits, more than a JSON number can be trusted with. */
static json_t *number_text(uint64_t value)
{
	char text[24];

	snprintf(text, sizeof(text), "%" PRIu64, value);
	return json_string(text);
}

int pod_state_encode(const struct pod *pod, char **ret, struct error *err)
{
	scoped_json json_t *obj = json_pack(
		"{s:s, s:s, s:s?, s:s?, s:s?, s:s?, s:s?, s:s?, s:o, s:o, s:o, s:o, s:O?, "
		"s:O?, s:s, s:s?, s:s?, s:s?, s:I}",
		"containerId", pod->container_id, "ifName", pod->if_name, "network", pod->network,
		"namespace", pod->ns, "name", pod->name, "uid", pod->uid, "netns", pod->netns,
		"cgroup", pod->cgroup, "cookie", number_text(pod->cookie), "netnsDev",
		number_text(pod->netns_dev), "netnsIno", number_text(pod->netns_ino), "ips",
		ips_json(pod), "annotations", pod->annotations, "labels", pod->labels, "decision",
		mode_names[pod->mode], "reason", pod->reason, "serviceAccount",
		pod->service_account, "invalidDrop", invalid_drop_names[pod->invalid_drop], "since",
		(json_int_t)pod->since_s);

	*ret = obj ? json_to_text(obj) : NULL;
	return *ret ? 0 : error_set(err, ENOMEM, "state of %s", pod->container_id);
}

/* ---- reading -------------------------------------------------------------------------------- */

static int copy_string(const json_t *obj, const char *name, const char *where, size_t max,
		       char **ret, struct error *err)
{
	const char *text = NULL;
	int r = json_get_string(obj, name, where, &text, err);

	if (r || !text)
		return r;
	if (strlen(text) > max)
		return error_set(err, EINVAL, "%s%s: longer than %zu bytes", where, name, max);
	*ret = strdup(text);
	return *ret ? 0 : error_set(err, ENOMEM, "%s%s", where, name);
}

static int get_number_text(const json_t *obj, const char *name, const char *where, uint64_t *ret,
			   struct error *err)
{
	const char *text = NULL;
	int r = json_get_string(obj, name, where, &text, err);

	if (r)
		return r;
	if (!text || !*text || strlen(text) > 20 || strspn(text, "0123456789") != strlen(text))
		return error_set(err, EINVAL, "%s%s: not a number in a string", where, name);
	errno = 0;
	*ret = strtoull(text, NULL, 10);
	if (errno)
		return error_set(err, EINVAL, "%s%s: %s is out of range", where, name, text);
	return 0;
}

static int parse_address(const char *text, struct agent_address *ret, struct error *err)
{
	char address[IP_ADDRESS_TEXT_MAX];
	const char *slash = strchr(text, '/');
	size_t n_digits = slash ? strspn(slash + 1, "0123456789") : 0;
	unsigned long length;
	int r;

	if (!slash || (size_t)(slash - text) >= sizeof(address) || n_digits < 1 || n_digits > 3 ||
	    slash[1 + n_digits])
		return error_set(err, EINVAL, "\"%.64s\" is not ADDR/LEN", text);
	memcpy(address, text, (size_t)(slash - text));
	address[slash - text] = '\0';
	r = ip_address_parse(address, &ret->address, err);
	if (r)
		return r;
	length = strtoul(slash + 1, NULL, 10);
	if (length > (ip_address_is_v4(&ret->address) ? 32 : 128))
		return error_set(err, EINVAL, "\"%.64s\": prefix too long", text);
	ret->prefix_length = (uint8_t)length;
	return 0;
}

static int get_ips(const json_t *obj, const char *where, struct pod *pod, struct error *err)
{
	json_t *list = NULL, *element;
	size_t i;
	int r = json_get_array(obj, "ips", where, &list, err);

	if (r || !list)
		return r;
	if (json_array_size(list) > IPS_MAX)
		return error_set(err, EINVAL, "%sips: more than %d", where, IPS_MAX);
	pod->ips = calloc(json_array_size(list) + 1, sizeof(*pod->ips));
	if (!pod->ips)
		return error_set(err, ENOMEM, "%sips", where);
	json_array_foreach (list, i, element) {
		const char *text = json_string_value(element);

		if (!text)
			return error_set(err, EINVAL, "%sips[%zu]: not a string", where, i);
		r = parse_address(text, &pod->ips[i], err);
		if (r)
			return error_wrap(err, "%sips[%zu]", where, i);
		pod->n_ips++;
	}
	return 0;
}

static int get_string_map(const json_t *obj, const char *name, const char *where, json_t **ret,
			  struct error *err)
{
	json_t *map = NULL;
	int r = json_get_object(obj, name, where, &map, err);

	if (r || !map)
		return r;
	r = json_check_string_map(map, name, err);
	if (r)
		return error_wrap(err, "%s", where);
	*ret = json_incref(map);
	return 0;
}

static int get_mode(const json_t *obj, const char *where, enum pod_mode *ret, struct error *err)
{
	const char *text = NULL;
	int r = json_get_string(obj, "decision", where, &text, err);

	if (r)
		return r;
	for (size_t i = 0; text && i < N_MODES; i++) {
		if (!strcmp(mode_names[i], text)) {
			*ret = (enum pod_mode)i;
			return 0;
		}
	}
	return error_set(err, EINVAL, "%sdecision: \"%.32s\" is unknown", where, text ?: "");
}

static int get_invalid_drop(const json_t *obj, const char *where, enum pod_invalid_drop *ret,
			    struct error *err)
{
	const char *text = NULL;
	int r = json_get_string(obj, "invalidDrop", where, &text, err);

	if (r || !text)
		return r;
	for (size_t i = 0; i < N_INVALID_DROPS; i++) {
		if (invalid_drop_names[i] && !strcmp(invalid_drop_names[i], text)) {
			*ret = (enum pod_invalid_drop)i;
			return 0;
		}
	}
	return error_set(err, EINVAL, "%sinvalidDrop: \"%.32s\" is unknown", where, text);
}

static int fill_texts(const json_t *obj, const char *where, struct pod *pod, struct error *err)
{
	enum { NAME_MAX_BYTES = 256, PATH_MAX_BYTES = 4096 };
	const struct {
		const char *name;
		size_t max;
		char **ret;
	} fields[] = {
		{"network", NAME_MAX_BYTES, &pod->network},
		{"namespace", NAME_MAX_BYTES, &pod->ns},
		{"name", NAME_MAX_BYTES, &pod->name},
		{"uid", NAME_MAX_BYTES, &pod->uid},
		{"serviceAccount", NAME_MAX_BYTES, &pod->service_account},
		{"netns", PATH_MAX_BYTES, &pod->netns},
		{"cgroup", PATH_MAX_BYTES, &pod->cgroup},
		{"reason", REASON_MAX, &pod->reason},
	};
	int r = 0;

	for (size_t i = 0; !r && i < sizeof(fields) / sizeof(fields[0]); i++)
		r = copy_string(obj, fields[i].name, where, fields[i].max, fields[i].ret, err);
	return r;
}

static int fill_pod(const json_t *obj, const char *where, struct pod *pod, struct error *err)
{
	uint64_t dev = 0, ino = 0;
	json_int_t since = 0;
	int r = fill_texts(obj, where, pod, err);

	if (!r)
		r = get_number_text(obj, "cookie", where, &pod->cookie, err);
	if (!r)
		r = get_number_text(obj, "netnsDev", where, &dev, err);
	if (!r)
		r = get_number_text(obj, "netnsIno", where, &ino, err);
	if (!r)
		r = get_ips(obj, where, pod, err);
	if (!r)
		r = get_string_map(obj, "annotations", where, &pod->annotations, err);
	if (!r)
		r = get_string_map(obj, "labels", where, &pod->labels, err);
	if (!r)
		r = get_mode(obj, where, &pod->mode, err);
	if (!r)
		r = get_invalid_drop(obj, where, &pod->invalid_drop, err);
	if (!r)
		r = json_get_integer(obj, "since", where, 0, INT64_C(253402300799), &since, err);
	pod->netns_dev = (dev_t)dev;
	pod->netns_ino = (ino_t)ino;
	pod->since_s = since;
	if (r)
		return r;
	pod->record = json_to_text(obj);
	return pod->record ? 0 : error_set(err, ENOMEM, "%s", where);
}

static int decode_pod(const json_t *obj, size_t i, struct pod **ret, struct error *err)
{
	enum { ID_MAX = 256 };
	char where[32];
	const char *container_id = NULL, *if_name = NULL;
	struct pod *pod;
	int r;

	snprintf(where, sizeof(where), "pods[%zu].", i);
	if (!json_is_object(obj))
		return error_set(err, EINVAL, "pods[%zu]: not an object", i);
	r = json_get_string(obj, "containerId", where, &container_id, err);
	if (!r)
		r = json_get_string(obj, "ifName", where, &if_name, err);
	if (r)
		return r;
	if (!container_id || !*container_id || strlen(container_id) > ID_MAX || !if_name ||
	    !*if_name || strlen(if_name) > ID_MAX)
		return error_set(err, EINVAL, "%scontainerId and ifName: absent or too long",
				 where);
	pod = pod_new(container_id, if_name);
	if (!pod)
		return error_set(err, ENOMEM, "%s", where);
	r = fill_pod(obj, where, pod, err);
	if (r)
		pod_free(pod);
	else
		*ret = pod;
	return r;
}

static int check_version(const json_t *root, struct error *err)
{
	json_int_t version = 0;
	int r;

	if (!json_is_object(root))
		return error_set(err, EINVAL, "state: not a JSON object");
	r = json_get_integer(root, "v", "", 1, 1000000, &version, err);
	if (r)
		return r;
	if (!version)
		return error_set(err, EINVAL, "state: no \"v\"");
	if (version > POD_STATE_VERSION)
		return error_set(err, EPROTONOSUPPORT, "state: version %lld, we read up to %d",
				 (long long)version, POD_STATE_VERSION);
	return 0;
}

int pod_state_decode(const char *text, size_t size, struct pod ***ret, size_t *ret_n,
		     struct error *err)
{
	scoped_json json_t *root = NULL;
	json_t *list = NULL;
	struct pod **pods;
	size_t n, used = 0;
	int r = json_parse(text, size, "state", &root, err);

	if (!r)
		r = check_version(root, err);
	if (!r)
		r = json_get_array(root, "pods", "", &list, err);
	if (r)
		return r;
	n = json_array_size(list);
	if (!list || n > POD_STATE_PODS_MAX)
		return error_set(err, EINVAL, "state: no \"pods\", or more than %d",
				 POD_STATE_PODS_MAX);
	pods = calloc(n + 1, sizeof(struct pod *));
	if (!pods)
		return error_set(err, ENOMEM, "state of %zu pods", n);
	for (; !r && used < n; used += !r)
		r = decode_pod(json_array_get(list, used), used, &pods[used], err);
	if (r) {
		while (used)
			pod_free(pods[--used]);
		free(pods);
		return r;
	}
	*ret = pods;
	*ret_n = n;
	return 0;
}

const char *pod_state_time(int64_t seconds, char buf[static TIME_TEXT_MAX])
{
	time_t time = seconds;
	struct tm tm;

	if (!gmtime_r(&time, &tm) || !strftime(buf, TIME_TEXT_MAX, "%Y-%m-%dT%H:%M:%SZ", &tm))
		snprintf(buf, TIME_TEXT_MAX, "-");
	return buf;
}
