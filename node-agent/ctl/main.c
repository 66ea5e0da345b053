/* SPDX-License-Identifier: Apache-2.0 */
/* sockmeshctl: asks the node agent and shows its answers. */
#include "agent_protocol.h"
#include "ctl.h"
#include "ctl_print.h"
#include "error.h"
#include "json.h"
#include "monotonic.h"
#include "scoped.h"

#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_RUN_DIR	   "/run/sockmesh"
#define DEFAULT_TIMEOUT_MS 10000
#define ID_MAX		   4294967294 /* the highest is "no id" to the kernel */
#define TIMEOUT_MS_MAX	   3600000
#define ADVISE_SECONDS_MAX 3600
#define ASK_AGAIN_MS	   1000

static const struct ctl_verb *const verbs[] = {&ctl_status,  &ctl_pods,	 &ctl_pod,
					       &ctl_explain, &ctl_probe, &ctl_accelerate};
enum { N_VERBS = sizeof(verbs) / sizeof(const struct ctl_verb *) };

/* ---- options: one table for the parser and for --help ------------------------------------------
 */

enum option_id {
	OPT_OUTPUT = 'o',
	OPT_HELP = 'h',
	OPT_VERSION = 'V',
	OPT_RUN_DIR = 256, /* from here on without a letter */
	OPT_TIMEOUT_MS,
	OPT_POD,
	OPT_TO,
	OPT_UID,
	OPT_GID,
	OPT_UDP,
	OPT_INTERFACE,
	OPT_ADVISE,
	OPT_SECONDS,
};

struct option_row {
	const char *name, *value; /* value NULL: a switch */
	const char *environment;  /* NULL: none */
	const char *help;
	enum option_id id;
	enum ctl_option_set set; /* only for verbs that take it; CTL_TAKES_NOTHING: for all */
};

static const struct option_row options[] = {
	{"output", "text|json", "SOCKMESH_OUTPUT", "text for people (default), or one JSON object",
	 OPT_OUTPUT, CTL_TAKES_NOTHING},
	{"run-dir", "DIR", "SOCKMESH_RUN_DIR", "where the agent's socket is (" DEFAULT_RUN_DIR ")",
	 OPT_RUN_DIR, CTL_TAKES_NOTHING},
	{"timeout-ms", "N", "SOCKMESH_TIMEOUT_MS", "how long to wait for the agent (10000)",
	 OPT_TIMEOUT_MS, CTL_TAKES_NOTHING},
	{"pod", "NS/NAME", NULL, "the pod that opens the connection", OPT_POD, CTL_TAKES_FLOW},
	{"to", "ADDR:PORT", NULL, "where to; IPv6 as [::1]:80", OPT_TO, CTL_TAKES_FLOW},
	{"uid", "N", NULL, "the opener's user id, as seen in the pod", OPT_UID, CTL_TAKES_FLOW},
	{"gid", "N", NULL, "the opener's group id", OPT_GID, CTL_TAKES_FLOW},
	{"udp", NULL, NULL, "a datagram, not a TCP connection", OPT_UDP, CTL_TAKES_FLOW},
	{"interface", "NAME", NULL, "the interface that it leaves by", OPT_INTERFACE,
	 CTL_TAKES_FLOW},
	{"advise", "NS/NAME", NULL, "watch this workload: is full safe for it?", OPT_ADVISE,
	 CTL_TAKES_ADVICE},
	{"seconds", "N", NULL, "for so long (60)", OPT_SECONDS, CTL_TAKES_ADVICE},
	{"help", NULL, NULL, "this text", OPT_HELP, CTL_TAKES_NOTHING},
	{"version", NULL, NULL, "the version", OPT_VERSION, CTL_TAKES_NOTHING},
};
enum { N_OPTIONS = sizeof(options) / sizeof(*options) };

struct command_line {
	struct ctl_options opt;
	const struct ctl_verb *verb;
	bool help, version;
	bool given[N_OPTIONS];
};

static void print_help(FILE *file)
{
	fputs("Usage: sockmeshctl [OPTION...] COMMAND\n"
	      "\n"
	      "Asks the node's sockmesh-agent what it does with connections of pods.\n"
	      "\n"
	      "Commands:\n",
	      file);
	for (size_t i = 0; i < N_VERBS; i++) {
		const char *help = verbs[i]->help;
		const char *rest = strchrnul(help, '\n');

		fprintf(file, "  %s%s%s\n      %.*s\n", verbs[i]->name,
			*verbs[i]->arguments ? " " : "", verbs[i]->arguments, (int)(rest - help),
			help);
		if (*rest)
			fprintf(file, "      %s\n", rest + 1);
	}
	fputs("\nOptions:\n", file);
	for (size_t i = 0; i < N_OPTIONS; i++) {
		const struct option_row *row = &options[i];
		char flag[64];

		snprintf(flag, sizeof(flag), "%c%c%c --%s%s%s", row->id < 256 ? '-' : ' ',
			 row->id < 256 ? (char)row->id : ' ', row->id < 256 ? ',' : ' ', row->name,
			 row->value ? " " : "", row->value ? row->value : "");
		fprintf(file, "  %-26s %s\n", flag, row->help);
		if (row->environment)
			fprintf(file, "  %-26s environment: %s\n", "", row->environment);
	}
	fputs("\n"
	      "Exit status: 0 yes; 1 no, not found or degraded; 2 usage; 3 agent unreachable;\n"
	      "4 agent error.\n",
	      file);
}

static int parse_number(const char *name, const char *text, long long min, long long max,
			long long *ret, struct error *err)
{
	long long value;
	char *end;

	errno = 0;
	value = strtoll(text, &end, 10);
	if (errno || end == text || *end || value < min || value > max)
		return error_set(err, EINVAL, "%s \"%s\" is not a number from %lld to %lld", name,
				 text, min, max);
	*ret = value;
	return 0;
}

static int set_option(struct command_line *cl, const struct option_row *row, const char *where,
		      const char *value, struct error *err)
{
	long long number = 0;
	int r = 0;

	switch (row->id) {
	case OPT_OUTPUT:
		cl->opt.json = strcmp(value, "json") == 0;
		if (!cl->opt.json && strcmp(value, "text") != 0)
			return error_set(err, EINVAL, "%s \"%s\" is neither text nor json", where,
					 value);
		break;
	case OPT_RUN_DIR:
		cl->opt.run_dir = value;
		break;
	case OPT_TIMEOUT_MS:
		r = parse_number(where, value, 1, TIMEOUT_MS_MAX, &number, err);
		cl->opt.timeout_ms = (int)number;
		break;
	case OPT_POD:
		cl->opt.pod = value;
		break;
	case OPT_TO:
		cl->opt.to = value;
		break;
	case OPT_UID:
		r = parse_number(where, value, 0, ID_MAX, &number, err);
		cl->opt.uid = number;
		break;
	case OPT_GID:
		r = parse_number(where, value, 0, ID_MAX, &number, err);
		cl->opt.gid = number;
		break;
	case OPT_UDP:
		cl->opt.udp = true;
		break;
	case OPT_INTERFACE:
		cl->opt.interface = value;
		break;
	case OPT_ADVISE:
		cl->opt.advise = value;
		break;
	case OPT_SECONDS:
		r = parse_number(where, value, 1, ADVISE_SECONDS_MAX, &number, err);
		cl->opt.seconds = (unsigned)number;
		break;
	case OPT_HELP:
		cl->help = true;
		break;
	case OPT_VERSION:
		cl->version = true;
		break;
	}
	cl->given[row - options] = true;
	return r;
}

static const struct option_row *option_by_id(int id)
{
	for (size_t i = 0; i < N_OPTIONS; i++)
		if ((int)options[i].id == id)
			return &options[i];
	return NULL;
}

static int read_environment(struct command_line *cl, struct error *err)
{
	for (size_t i = 0; i < N_OPTIONS; i++) {
		const char *name = options[i].environment;
		const char *value = name ? getenv(name) : NULL;
		int r;

		if (!value || !*value)
			continue;
		r = set_option(cl, &options[i], name, value, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int read_options(struct command_line *cl, int argc, char **argv, struct error *err)
{
	struct option table[N_OPTIONS + 1] = {0};
	int id;

	for (size_t i = 0; i < N_OPTIONS; i++) {
		table[i].name = options[i].name;
		table[i].has_arg = options[i].value ? required_argument : no_argument;
		table[i].val = (int)options[i].id;
	}
	while ((id = getopt_long(argc, argv, ":o:hV", table, NULL)) != -1) {
		const struct option_row *row = option_by_id(id);
		char where[32];
		int r;

		if (id == ':')
			return error_set(err, EINVAL, "%s needs a value", argv[optind - 1]);
		if (!row && optopt > 0 && optopt < 256)
			return error_set(err, EINVAL, "unknown option -%c", optopt);
		if (!row)
			return error_set(err, EINVAL, "unknown option %s", argv[optind - 1]);
		snprintf(where, sizeof(where), "--%s", row->name);
		r = set_option(cl, row, where, optarg, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int read_verb(struct command_line *cl, int argc, char **argv, struct error *err)
{
	int n_arguments = argc - optind - 1;
	int wanted;

	if (optind == argc)
		return error_set(err, EINVAL, "no command; see sockmeshctl --help");
	for (size_t i = 0; i < N_VERBS; i++)
		if (strcmp(argv[optind], verbs[i]->name) == 0)
			cl->verb = verbs[i];
	if (!cl->verb)
		return error_set(err, EINVAL, "unknown command \"%s\"; see sockmeshctl --help",
				 argv[optind]);
	for (size_t i = 0; i < N_OPTIONS; i++)
		if (cl->given[i] && (options[i].set & ~cl->verb->takes))
			return error_set(err, EINVAL, "--%s does not go with %s", options[i].name,
					 cl->verb->name);
	wanted = cl->verb->takes & CTL_TAKES_POD_ARGUMENT ? 1 : 0;
	if (n_arguments < wanted)
		return error_set(err, EINVAL, "%s needs %s", cl->verb->name, cl->verb->arguments);
	if (n_arguments > wanted)
		return error_set(err, EINVAL, "unexpected argument \"%s\"",
				 argv[optind + 1 + wanted]);
	if (wanted)
		cl->opt.pod = argv[optind + 1];
	return 0;
}

static int read_command_line(int argc, char **argv, struct command_line *cl, struct error *err)
{
	int r;

	*cl = (struct command_line){.opt = {.run_dir = DEFAULT_RUN_DIR,
					    .timeout_ms = DEFAULT_TIMEOUT_MS,
					    .uid = -1,
					    .gid = -1}};
	r = read_environment(cl, err);
	if (r == 0)
		r = read_options(cl, argc, argv, err);
	if (r == 0 && !cl->help && !cl->version)
		r = read_verb(cl, argc, argv, err);
	return r;
}

/* ---- asking ------------------------------------------------------------------------------------
 */

/* An errno of agent_call() that means: it is there, but what came back is no answer. */
static bool answered_badly(int code)
{
	return code == EINVAL || code == EPROTO || code == EBADMSG || code == EMSGSIZE ||
	       code == E2BIG || code == ENOMEM;
}

static enum ctl_exit report(const struct ctl_options *opt, enum ctl_exit status, const char *code,
			    const char *message)
{
	scoped_free char *safe = ctl_escape(message);

	fprintf(stderr, "sockmeshctl: %s\n", safe ? safe : code);
	if (opt->json) {
		scoped_json json_t *body = json_pack("{s:i, s:b, s:s, s:s}", "v", 1, "ok", 0,
						     "code", code, "message", message);
		scoped_free char *text = body ? json_to_text(body) : NULL;

		printf("%s\n", text ? text : "{\"v\":1,\"ok\":false}");
	}
	return status;
}

static enum ctl_exit report_call_failure(const struct ctl_options *opt, const struct error *err)
{
	char text[1024], message[1200];

	error_format(err, text, sizeof(text));
	if (answered_badly(err->code))
		return report(opt, CTL_AGENT_ERROR, "bad-answer", text);
	if (err->code == ENOENT || err->code == ECONNREFUSED)
		snprintf(message, sizeof(message),
			 "%s; is sockmesh-agent running, and is %s its --run-dir?", text,
			 opt->run_dir);
	else
		snprintf(message, sizeof(message), "%s", text);
	return report(opt, CTL_UNREACHABLE, "unreachable", message);
}

static enum ctl_exit show_answer(const struct command_line *cl, const struct agent_reply *reply)
{
	bool terminal = isatty(STDOUT_FILENO) && !getenv("NO_COLOR");
	struct ctl_out out = {stdout, terminal};

	if (!reply->ok) {
		const char *code = ctl_string(reply->body, "code", "refused");
		bool not_found = reply->code == AGENT_CODE_NOT_FOUND;

		return report(&cl->opt, not_found ? CTL_NO : CTL_AGENT_ERROR, code,
			      reply->message ? reply->message : code);
	}
	if (cl->opt.json) {
		scoped_free char *text = json_to_text(reply->body);

		if (!text)
			return report(&cl->opt, CTL_AGENT_ERROR, "bad-answer", "no memory");
		puts(text);
	} else {
		cl->verb->show(&cl->opt, reply->body, &out);
	}
	return cl->verb->status(reply->body);
}

/* CTL_OK with a decoded reply; else it has been reported. */
static enum ctl_exit ask_once(const struct ctl_options *opt, const char *request, size_t size,
			      struct agent_reply *ret)
{
	scoped_free char *answer = NULL;
	struct error err = {0};
	size_t answer_size;

	if (agent_call(opt->run_dir, request, size, -1, opt->timeout_ms, &answer, &answer_size,
		       &err) < 0)
		return report_call_failure(opt, &err);
	if (agent_reply_decode(answer, answer_size, ret, &err) < 0) {
		error_wrap(&err, "the agent's answer");
		return report(opt, CTL_AGENT_ERROR, "bad-answer", err.text);
	}
	return CTL_OK;
}

/* One line that the next one overwrites, for whoever sits before a terminal. */
static void show_progress(const char *what, unsigned left_s)
{
	scoped_free char *safe = ctl_escape(what);

	if (isatty(STDERR_FILENO))
		fprintf(stderr, left_s ? "\r\033[K%s, %u s left" : "\r\033[K",
			safe ? safe : "waiting", left_s);
}

static enum ctl_exit ask(const struct command_line *cl, const struct agent_request *req)
{
	const struct ctl_options *opt = &cl->opt;
	scoped(agent_reply_done) struct agent_reply reply = {0};
	scoped_free char *request = NULL;
	struct error err = {0};
	int64_t deadline_ms = 0;
	size_t size;

	if (agent_request_encode(req, &request, &size, &err) < 0)
		return report(opt, CTL_USAGE, "bad-request", err.text);
	for (;;) {
		enum ctl_exit status = ask_once(opt, request, size, &reply);
		char what[640] = "";
		unsigned left_s = 0;

		if (status == CTL_OK && reply.ok && cl->verb->left_s)
			left_s = cl->verb->left_s(reply.body, what, sizeof(what));
		if (status != CTL_OK || deadline_ms || left_s)
			show_progress(what, left_s);
		if (status != CTL_OK)
			return status;
		if (!left_s)
			return show_answer(cl, &reply);
		if (!deadline_ms)
			deadline_ms = monotonic_ms() + (int64_t)left_s * 1000 + opt->timeout_ms;
		if (monotonic_ms() >= deadline_ms)
			return report(opt, CTL_AGENT_ERROR, "bad-answer",
				      "the agent was to be done by now, and is not");
		agent_reply_done(&reply);
		poll(NULL, 0, ASK_AGAIN_MS);
	}
}

static enum ctl_exit run(int argc, char **argv)
{
	scoped(agent_request_done) struct agent_request req = {
		.version = AGENT_PROTOCOL_VERSION, .uid = -1, .gid = -1};
	struct command_line cl;
	struct error err = {0};
	int r = read_command_line(argc, argv, &cl, &err);

	if (r == 0 && cl.help) {
		print_help(stdout);
		return CTL_OK;
	}
	if (r == 0 && cl.version) {
		puts("sockmeshctl " SOCKMESH_VERSION);
		return CTL_OK;
	}
	if (r == 0)
		r = cl.verb->request(&cl.opt, &req, &err);
	if (r < 0) {
		scoped_free char *safe = ctl_escape(err.text);

		fprintf(stderr, "sockmeshctl: %s\n", safe ? safe : "usage");
		return CTL_USAGE;
	}
	return ask(&cl, &req);
}

int main(int argc, char **argv)
{
	enum ctl_exit status = run(argc, argv);

	if (fflush(stdout) != 0 || ferror(stdout)) {
		fprintf(stderr, "sockmeshctl: write the answer: %s\n", strerror(errno));
		return CTL_AGENT_ERROR;
	}
	return (int)status;
}
