/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The agent's client and watch of the Kubernetes API on an event loop, what it writes there about
 * pods, and nothing else: says on standard output what they see, one line each, and does what
 * standard input asks:
 *
 * - dump: "dump NAMESPACE/NAME VERSION" for each object that is there, then "dump end COUNT"
 * - status: "status {...}", the watch and the client
 * - memory: "memory HIGH_WATER_KB RESIDENT_KB"
 * - fds: "fds COUNT"
 * - stall: "stall MS", the longest time that the loop was held up since the last one
 * - work: "work MS", the longest time that it computed without a break, likewise
 * - send METHOD PATH [BODY]: "response STATUS RETRY_AFTER_MS BODY | ERROR"
 * - drop METHOD PATH: sends it and cancels it at once
 * - set {"ns","name","uid","status","redirection"}: pod_status_set(); redirection may be left out
 * - event {"ns","name","uid","reason","message"}: pod_status_event()
 * - forget UID: both of what is written and what is repaired
 * - written: "written {...}", pod_status_json()
 * - delete POD, label POD: pod_repair_look_at() of the API's object, with --repair delete or label
 * - repaired: "repaired DELETED LABELLED FAILED"
 * - again: ends the watch and begins another one
 * - quit
 */
#include "error.h"
#include "event_loop.h"
#include "json.h"
#include "kube_client.h"
#include "kube_config.h"
#include "kube_watch.h"
#include "monotonic.h"
#include "pod_repair.h"
#include "pod_status.h"
#include "scoped.h"

#include <curl/curl.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { TICK_MS = 5, LINE_MAX_SIZE = 65536, DEADLINE_MS = 5000 };

struct rig {
	struct event_loop *loop;
	struct kube_config *config;
	struct kube_client *client;
	struct kube_watch *watch;
	struct kube_watch_spec spec;
	struct pod_status *written;
	struct pod_repair *deletes, *labels;
	const char *kubeconfig, *service_account, *host, *port;
	uint32_t deadline_ms;
	bool quiet;

	json_t *objects; /* "NAMESPACE/NAME": version */
	json_t *seen;	 /* the same, of the list that is coming in */
	uint64_t listed;
	clock_t list_cpu;
	int64_t list_began_ms;

	int64_t ticked_ms, stall_ms;
	int64_t ticked_cpu_us, work_us;
	char line[LINE_MAX_SIZE];
	size_t used;
};

/* ---- what the watch says ------------------------------------------------------------------------
 */

static void on_begin(void *arg)
{
	struct rig *rig = arg;

	printf("begin\n");
	json_decref(rig->seen);
	rig->seen = json_object();
	rig->listed = 0;
	rig->list_cpu = clock();
	rig->list_began_ms = monotonic_ms();
}

static void on_object(void *arg, enum kube_change change, const json_t *object,
		      const struct error *unreadable)
{
	static const char *const words[] = {"seen", "changed", "deleted"};
	const json_t *metadata = json_object_get(object, "metadata");
	const char *ns = json_string_value(json_object_get(metadata, "namespace"));
	const char *name = json_string_value(json_object_get(metadata, "name"));
	const char *version = json_string_value(json_object_get(metadata, "resourceVersion"));
	struct rig *rig = arg;
	char key[600];

	snprintf(key, sizeof(key), "%s%s%s", ns ? ns : "", ns ? "/" : "", name);
	if (change == KUBE_DELETED)
		json_object_del(rig->objects, key);
	else
		json_object_set_new(rig->objects, key, json_string(version));
	if (change == KUBE_SEEN)
		json_object_set_new(rig->seen, key, json_true());
	rig->listed += change == KUBE_SEEN;
	if (!rig->quiet || unreadable)
		printf("%s %s %s%s%s\n", words[change], key, version,
		       unreadable ? " unreadable: " : "", unreadable ? unreadable->text : "");
}

static void on_end(void *arg)
{
	struct rig *rig = arg;
	const char *key;
	void *tmp;
	json_t *version;

	json_object_foreach_safe (rig->objects, tmp, key, version) {
		if (!json_object_get(rig->seen, key)) {
			printf("gone %s\n", key);
			json_object_del(rig->objects, key);
		}
	}
	json_decref(rig->seen);
	rig->seen = NULL;
	printf("end %" PRIu64 " cpu_ms %ld wall_ms %" PRId64 "\n", rig->listed,
	       (long)((clock() - rig->list_cpu) * 1000 / CLOCKS_PER_SEC),
	       monotonic_ms() - rig->list_began_ms);
}

static void on_state(void *arg, enum kube_watch_state state, const struct error *why)
{
	static const char *const words[] = {"listing", "watching", "waiting"};

	(void)arg;
	printf("state %s%s%s\n", words[state], why ? ": " : "", why ? why->text : "");
}

static const struct kube_watch_ops watch_ops = {on_begin, on_object, on_end, on_state};

/* ---- commands -----------------------------------------------------------------------------------
 */

static void print_dump(struct rig *rig)
{
	scoped_free char *text = json_dumps(rig->objects, JSON_SORT_KEYS);
	scoped_json json_t *sorted = text ? json_loads(text, 0, NULL) : NULL;
	const char *key;
	json_t *version;

	json_object_foreach (sorted, key, version)
		printf("dump %s %s\n", key, json_string_value(version));
	printf("dump end %zu\n", json_object_size(rig->objects));
}

static void print_status(struct rig *rig)
{
	scoped_json json_t *status = json_pack("{s:o, s:o}", "watch", kube_watch_status(rig->watch),
					       "client", kube_client_status(rig->client));
	scoped_free char *text = json_to_text(status);

	printf("status %s\n", text ? text : "{}");
}

static void print_memory(void)
{
	scoped_file FILE *f = fopen("/proc/self/status", "re");
	long high = 0, resident = 0;
	char line[256];

	while (f && fgets(line, sizeof(line), f)) {
		if (strncmp(line, "VmHWM:", 6) == 0)
			high = strtol(line + 6, NULL, 10);
		if (strncmp(line, "VmRSS:", 6) == 0)
			resident = strtol(line + 6, NULL, 10);
	}
	printf("memory %ld %ld\n", high, resident);
}

static void print_fds(void)
{
	scoped_dir DIR *dir = opendir("/proc/self/fd");
	int n = -3; /* ., .. and dir's own */

	while (dir && readdir(dir))
		n++;
	printf("fds %d\n", n);
}

static void on_response(void *arg, const struct kube_response *response)
{
	(void)arg;
	if (response->err.code)
		printf("response %d %" PRId64 " %.*s | %s\n", response->status,
		       response->retry_after_ms, (int)strcspn(response->body, "\r\n"),
		       response->body, response->err.text);
	else
		printf("response %d %" PRId64 " %.*s\n", response->status, response->retry_after_ms,
		       (int)strcspn(response->body, "\r\n"), response->body);
}

static void send_request(struct rig *rig, char *arguments, bool drop)
{
	struct kube_request_spec spec = {.deadline_ms = rig->deadline_ms, .on_done = on_response};
	struct kube_request *request = NULL;
	struct error err;

	spec.method = strsep(&arguments, " ");
	spec.path = strsep(&arguments, " ");
	spec.body = arguments;
	spec.body_size = arguments ? strlen(arguments) : 0;
	spec.content_type = arguments ? "application/merge-patch+json" : NULL;
	if (!spec.path || kube_client_send(rig->client, &spec, &request, &err) < 0)
		printf("refused %s\n", spec.path ? err.text : "without a path");
	else if (drop)
		kube_request_cancel(request);
}

/* ---- what is written ------------------------------------------------------------------------- */

static const char *member(const json_t *object, const char *name)
{
	return json_string_value(json_object_get(object, name));
}

static struct pod_status_pod pod_in(const json_t *object)
{
	return (struct pod_status_pod){.ns = member(object, "ns"),
				       .name = member(object, "name"),
				       .uid = member(object, "uid")};
}

static void set_status(struct rig *rig, const char *text)
{
	scoped_json json_t *object = json_loads(text, 0, NULL);
	const struct pod_status_pod pod = pod_in(object);
	const struct pod_status_values values = {.has_redirection =
							 json_object_get(object, "redirection"),
						 .redirection = member(object, "redirection"),
						 .status = member(object, "status")};
	struct error err = {0};

	if (!pod.uid || pod_status_set(rig->written, &pod, &values, &err))
		printf("failed %s\n", err.text);
}

static void tell_event(struct rig *rig, const char *text)
{
	scoped_json json_t *object = json_loads(text, 0, NULL);
	const struct pod_status_pod pod = pod_in(object);

	if (pod.uid)
		pod_status_event(rig->written, &pod, member(object, "reason"),
				 member(object, "message"));
}

static void repair(struct pod_repair *how, const char *text)
{
	const struct kube_selectors selectors = {0};
	const struct kube_keep keep = {.selectors = &selectors};
	scoped_json json_t *object = json_loads(text, 0, NULL);
	struct kube_pod *pod = NULL;
	struct error err = {0};

	if (kube_pod_read(object, &keep, &pod, &err))
		printf("failed %s\n", err.text);
	else
		pod_repair_look_at(how, pod, false);
	kube_pod_free(pod);
}

static void print_repaired(const struct rig *rig)
{
	struct pod_repair_counts deletes, labels;

	pod_repair_count(rig->deletes, &deletes);
	pod_repair_count(rig->labels, &labels);
	printf("repaired %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", deletes.deleted, labels.labelled,
	       deletes.failed + labels.failed);
}

static void print_written(const struct rig *rig)
{
	scoped_json json_t *status = pod_status_json(rig->written);
	scoped_free char *text = json_to_text(status);

	printf("written %s\n", text ? text : "{}");
}

/* False: it is about something else. */
static bool obey_writer(struct rig *rig, const char *command)
{
	if (strncmp(command, "set ", 4) == 0) {
		set_status(rig, command + 4);
	} else if (strncmp(command, "event ", 6) == 0) {
		tell_event(rig, command + 6);
	} else if (strncmp(command, "forget ", 7) == 0) {
		pod_status_forget(rig->written, command + 7);
		pod_repair_forget(rig->deletes, command + 7);
		pod_repair_forget(rig->labels, command + 7);
	} else if (strcmp(command, "written") == 0) {
		print_written(rig);
	} else if (strncmp(command, "delete ", 7) == 0) {
		repair(rig->deletes, command + 7);
	} else if (strncmp(command, "label ", 6) == 0) {
		repair(rig->labels, command + 6);
	} else if (strcmp(command, "repaired") == 0) {
		print_repaired(rig);
	} else {
		return false;
	}
	return true;
}

static int open_writers(struct rig *rig, struct error *err)
{
	const struct kube_repair_config deletes = {.delete = true, .exit_code = 126};
	const struct kube_repair_config labels = {.label = true, .exit_code = 126};
	int r = pod_status_new(rig->loop, rig->client, "node-1", &rig->written, err);

	if (!r)
		r = pod_repair_new(rig->client, rig->written, &deletes, &rig->deletes, err);
	return r ? r : pod_repair_new(rig->client, rig->written, &labels, &rig->labels, err);
}

/* ---- what is asked ----------------------------------------------------------------------------
 */

static void watch_again(struct rig *rig)
{
	struct error err = {0};

	kube_watch_free(rig->watch);
	rig->watch = NULL;
	if (kube_watch_new(&rig->spec, &rig->watch, &err) < 0) {
		printf("failed %s\n", err.text);
		event_loop_stop(rig->loop);
	}
}

static void obey(struct rig *rig, char *command)
{
	if (strcmp(command, "dump") == 0) {
		print_dump(rig);
	} else if (strcmp(command, "status") == 0) {
		print_status(rig);
	} else if (strcmp(command, "memory") == 0) {
		print_memory();
	} else if (strcmp(command, "fds") == 0) {
		print_fds();
	} else if (strcmp(command, "stall") == 0) {
		printf("stall %" PRId64 "\n", rig->stall_ms);
		rig->stall_ms = 0;
	} else if (strcmp(command, "work") == 0) {
		printf("work %" PRId64 "\n", rig->work_us / 1000);
		rig->work_us = 0;
	} else if (strncmp(command, "send ", 5) == 0) {
		send_request(rig, command + 5, false);
	} else if (strncmp(command, "drop ", 5) == 0) {
		send_request(rig, command + 5, true);
		printf("dropped\n");
	} else if (strcmp(command, "again") == 0) {
		watch_again(rig);
	} else if (strcmp(command, "quit") == 0) {
		event_loop_stop(rig->loop);
	} else if (!obey_writer(rig, command)) {
		printf("unknown %s\n", command);
	}
}

static void on_input(int fd, uint32_t events, void *arg)
{
	struct rig *rig = arg;
	ssize_t n = read(fd, rig->line + rig->used, sizeof(rig->line) - 1 - rig->used);
	char *newline;

	(void)events;
	if (n <= 0) {
		event_loop_stop(rig->loop);
		return;
	}
	rig->used += (size_t)n;
	rig->line[rig->used] = '\0';
	while ((newline = strchr(rig->line, '\n'))) {
		*newline = '\0';
		obey(rig, rig->line);
		rig->used -= (size_t)(newline + 1 - rig->line);
		memmove(rig->line, newline + 1, rig->used + 1);
	}
}

static int64_t cpu_us(void)
{
	struct timespec now = {0};

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* A timer that comes late was held up by somebody's callback, or by a busy machine. */
static void on_tick(void *arg)
{
	struct rig *rig = arg;
	int64_t now = monotonic_ms(), late = now - rig->ticked_ms - TICK_MS;
	int64_t cpu = cpu_us(), computed = cpu - rig->ticked_cpu_us;

	if (rig->ticked_ms && late > rig->stall_ms)
		rig->stall_ms = late;
	if (rig->ticked_ms && computed > rig->work_us)
		rig->work_us = computed;
	rig->ticked_ms = now;
	rig->ticked_cpu_us = cpu;
}

/* ---- options ------------------------------------------------------------------------------------
 */

static uint32_t number(const char *text)
{
	return (uint32_t)strtoul(text, NULL, 10);
}

static bool set_option(struct rig *rig, int c, const char *value)
{
	struct kube_watch_limits *l = &rig->spec.limits;

	switch (c) {
	case 'k':
		rig->kubeconfig = value;
		break;
	case 'a':
		rig->service_account = value;
		break;
	case 'h':
		rig->host = value;
		break;
	case 'p':
		rig->port = value;
		break;
	case 'P':
		rig->spec.path = value;
		break;
	case 'f':
		rig->spec.field_selector = value;
		break;
	case 'l':
		rig->spec.label_selector = value;
		break;
	case 'b':
		l->backoff_base_ms = number(value);
		break;
	case 'B':
		l->backoff_max_ms = number(value);
		break;
	case 'L':
		l->list_ms = number(value);
		break;
	case 's':
		l->list_silence_ms = number(value);
		break;
	case 'S':
		l->watch_silence_ms = number(value);
		break;
	case 'w':
		l->watch_s = number(value);
		break;
	case 'o':
		l->object_max = number(value);
		break;
	case 'd':
		rig->deadline_ms = number(value);
		break;
	case 'q':
		rig->quiet = true;
		break;
	default:
		return false;
	}
	return true;
}

static bool read_options(struct rig *rig, int argc, char **argv)
{
	static const struct option options[] = {
		{"kubeconfig", required_argument, NULL, 'k'},
		{"service-account", required_argument, NULL, 'a'},
		{"host", required_argument, NULL, 'h'},
		{"port", required_argument, NULL, 'p'},
		{"path", required_argument, NULL, 'P'},
		{"field-selector", required_argument, NULL, 'f'},
		{"label-selector", required_argument, NULL, 'l'},
		{"backoff-base", required_argument, NULL, 'b'},
		{"backoff-max", required_argument, NULL, 'B'},
		{"list-ms", required_argument, NULL, 'L'},
		{"list-silence-ms", required_argument, NULL, 's'},
		{"watch-silence-ms", required_argument, NULL, 'S'},
		{"watch-s", required_argument, NULL, 'w'},
		{"object-max", required_argument, NULL, 'o'},
		{"deadline-ms", required_argument, NULL, 'd'},
		{"quiet", no_argument, NULL, 'q'},
		{NULL, 0, NULL, 0},
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
		if (!set_option(rig, c, optarg))
			return false;
	return optind == argc;
}

static int load_config(struct rig *rig, struct error *err)
{
	if (rig->service_account)
		return kube_config_load_in_cluster(rig->host, rig->port, rig->service_account,
						   &rig->config, err);
	return kube_config_load(rig->kubeconfig, &rig->config, err);
}

static int run(struct rig *rig, struct error *err)
{
	fcntl(STDIN_FILENO, F_SETFL, O_NONBLOCK);
	rig->objects = json_object();
	if (event_loop_new(&rig->loop, err) < 0 || load_config(rig, err) < 0 ||
	    kube_client_new(rig->loop, rig->config, &rig->client, err) < 0 ||
	    open_writers(rig, err) < 0)
		return -err->code;
	rig->spec.loop = rig->loop;
	rig->spec.client = rig->client;
	rig->spec.name = "objects";
	rig->spec.ops = &watch_ops;
	rig->spec.arg = rig;
	if (kube_watch_new(&rig->spec, &rig->watch, err) < 0 ||
	    event_loop_add_fd(rig->loop, STDIN_FILENO, EPOLLIN, on_input, rig, NULL, err) < 0 ||
	    event_loop_add_timer(rig->loop, TICK_MS, TICK_MS, on_tick, rig, NULL, err) < 0)
		return -err->code;
	return event_loop_run(rig->loop, err);
}

int main(int argc, char **argv)
{
	static struct rig rig = {.deadline_ms = DEADLINE_MS};
	struct error err = {0};
	char text[700];
	int r;

	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	rig.spec.path = "/api/v1/pods";
	if (!read_options(&rig, argc, argv))
		return 2;
	if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
		return 1;
	r = run(&rig, &err);
	if (r < 0)
		fprintf(stderr, "watch_rig: %s\n", error_format(&err, text, sizeof(text)));
	kube_watch_free(rig.watch);
	pod_repair_free(rig.deletes);
	pod_repair_free(rig.labels);
	pod_status_free(rig.written);
	kube_client_free(rig.client);
	kube_config_free(rig.config);
	event_loop_free(rig.loop);
	json_decref(rig.objects);
	json_decref(rig.seen);
	curl_global_cleanup();
	return r < 0 ? 1 : 0;
}
