/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server for ztunnel by itself: obeys one JSON object a line on standard input, writes one a
 * line for everything that happens on standard output. What zds_test.py drives.
 *
 *	zds_rig '{"path": SOCKET, "hello_timeout_ms": N, ...}'
 *
 *	{"op":"start"}				accept connections
 *	{"op":"put","id":,"uid":,"netns":}	and remove, remember; -> {"event":"done","id":,...}
 *	{"op":"netns","uid":,"netns":}		what open_netns finds from now on; null: nothing
 *	{"op":"status"}				-> {"event":"status",...}
 *	{"op":"sync"}				-> {"event":"synced"}
 *	{"op":"close"}				ends the server; -> {"event":"closed"}, and the rig
 */
#include "error.h"
#include "event_loop.h"
#include "json.h"
#include "log.h"
#include "scoped.h"
#include "zds_server.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>

enum { LINE_MAX_BYTES = 65536 };

struct rig {
	struct event_loop *loop;
	struct zds_server *server;
	json_t *netns; /* uid -> path */
	size_t size;
	char line[LINE_MAX_BYTES];
};

static void say(json_t *event)
{
	scoped_free char *text = json_to_text(event);

	puts(text ? text : "{}");
	fflush(stdout);
	json_decref(event);
}

static void on_done(void *arg, enum zds_result result, const char *text)
{
	scoped_free char *id = arg;

	say(json_pack("{s:s, s:s, s:s, s:o}", "event", "done", "id", id, "result",
		      zds_result_name(result), "text", json_string_lossy(text)));
}

static void on_peers(void *arg, unsigned n_ready)
{
	(void)arg;
	say(json_pack("{s:s, s:i}", "event", "peers", "ready", (int)n_ready));
}

static int open_path(const char *path, int *ret_fd)
{
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;

	if (fd < 0)
		return -ENOENT;
	*ret_fd = fd;
	return 0;
}

static int open_netns(void *arg, const char *uid, int *ret_fd)
{
	struct rig *rig = arg;

	return open_path(json_string_value(json_object_get(rig->netns, uid)), ret_fd);
}

static const char *text_of(const json_t *command, const char *name, const char *otherwise)
{
	const char *value = json_string_value(json_object_get(command, name));

	return value ? value : otherwise;
}

static int put(struct rig *rig, const json_t *command, const struct zds_pod *pod, char **id,
	       struct error *err)
{
	scoped_fd int fd = -1;
	const char *path = text_of(command, "netns", "/proc/self/ns/net");
	int r;

	if (open_path(path, &fd))
		return error_set(err, ENOENT, "open %s", path);
	r = zds_server_put(rig->server, pod, fd, on_done, *id, err);
	if (!r)
		take_ptr(*id); /* on_done's */
	return r;
}

static int pod_command(struct rig *rig, const json_t *command, struct error *err)
{
	const char *op = text_of(command, "op", "");
	struct zds_pod pod = {
		.uid = text_of(command, "uid", ""),
		.name = text_of(command, "name", "pod"),
		.ns = text_of(command, "namespace", "default"),
		.service_account = text_of(command, "serviceAccount", "default"),
	};
	scoped_free char *id = strdup(text_of(command, "id", pod.uid));
	int r;

	if (!strcmp(op, "put"))
		return put(rig, command, &pod, &id, err);
	if (!strcmp(op, "remember"))
		return zds_server_remember(rig->server, &pod, err);
	if (strcmp(op, "remove") != 0)
		return error_set(err, EINVAL, "no op %s", op);
	r = zds_server_remove(rig->server, pod.uid, on_done, id, err);
	if (!r)
		take_ptr(id);
	return r;
}

static void obey(struct rig *rig, const char *line, size_t size)
{
	scoped_json json_t *command = NULL;
	struct error err = {0};
	const char *op;

	if (json_parse(line, size, "command", &command, &err)) {
		say(json_pack("{s:s, s:s}", "event", "error", "text", err.text));
		return;
	}
	op = text_of(command, "op", "");
	if (!strcmp(op, "start")) {
		zds_server_start(rig->server);
	} else if (!strcmp(op, "sync")) {
		say(json_pack("{s:s}", "event", "synced"));
	} else if (!strcmp(op, "status")) {
		say(json_pack("{s:s, s:o}", "event", "status", "status",
			      zds_server_status(rig->server)));
	} else if (!strcmp(op, "netns")) {
		json_object_set(rig->netns, text_of(command, "uid", ""),
				json_object_get(command, "netns"));
	} else if (!strcmp(op, "close")) {
		event_loop_stop(rig->loop);
	} else if (pod_command(rig, command, &err)) {
		say(json_pack("{s:s, s:s, s:i, s:s}", "event", "error", "id",
			      text_of(command, "id", text_of(command, "uid", "")), "code", err.code,
			      "text", err.text));
	}
}

static void on_input(int fd, uint32_t events, void *arg)
{
	struct rig *rig = arg;
	ssize_t n = read(fd, rig->line + rig->size, sizeof(rig->line) - rig->size);
	char *start = rig->line, *end;

	(void)events;
	if (n <= 0) { /* the test has ended, or written a line that is too long */
		event_loop_stop(rig->loop);
		return;
	}
	rig->size += (size_t)n;
	while ((end = memchr(start, '\n', rig->size))) {
		size_t size = (size_t)(end - start);

		obey(rig, start, size);
		start = end + 1;
		rig->size -= size + 1;
	}
	memmove(rig->line, start, rig->size);
}

static void number(const json_t *config, const char *name, uint32_t *ret)
{
	const json_t *value = json_object_get(config, name);

	if (value)
		*ret = (uint32_t)json_integer_value(value);
}

static int open_rig(struct rig *rig, const char *text, struct error *err)
{
	struct zds_server_config cfg = {ZDS_SERVER_DEFAULTS, .open_netns = open_netns,
					.on_peers = on_peers, .arg = rig};
	scoped_json json_t *config = NULL;
	int r = json_parse(text, strlen(text), "configuration", &config, err);

	if (r)
		return r;
	rig->netns = json_object();
	cfg.path = text_of(config, "path", "");
	number(config, "hello_timeout_ms", &cfg.hello_timeout_ms);
	number(config, "ack_timeout_ms", &cfg.ack_timeout_ms);
	number(config, "put_timeout_ms", &cfg.put_timeout_ms);
	number(config, "max_peers", &cfg.max_peers);
	number(config, "max_accepts", &cfg.max_accepts);
	number(config, "max_queued", &cfg.max_queued);
	number(config, "max_pods", &cfg.max_pods);
	r = event_loop_new(&rig->loop, err);
	if (!r)
		r = event_loop_add_fd(rig->loop, STDIN_FILENO, EPOLLIN, on_input, rig, NULL, err);
	return r ? r : zds_server_open(&cfg, rig->loop, &rig->server, err);
}

int main(int argc, char **argv)
{
	static struct rig rig;
	struct error err = {0};
	int r;

	if (argc != 2) {
		fprintf(stderr, "usage: zds_rig JSON\n");
		return 2;
	}
	log_setup(LOG_DEBUG, LOG_TEXT);
	r = open_rig(&rig, argv[1], &err);
	if (!r) {
		say(json_pack("{s:s}", "event", "open"));
		r = event_loop_run(rig.loop, &err);
	}
	zds_server_close(rig.server);
	if (r)
		log_error(LOG_ERROR, &err, "the rig ends", NULL);
	else
		say(json_pack("{s:s}", "event", "closed"));
	event_loop_free(rig.loop);
	json_decref(rig.netns);
	return r ? 1 : 0;
}
