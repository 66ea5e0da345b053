/* SPDX-License-Identifier: Apache-2.0 */

/*
 * sockmesh-cni: the CNI plugin. Reads the environment and stdin, checks them as the specification
 * says, runs one verb, and writes JSON to stdout. Logs go to stderr.
 */
#include "cni_commands.h"
#include "log.h"
#include "scoped.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	INPUT_MAX = 4 * 1024 * 1024,
	INPUT_STEP = 64 * 1024,
	VERSION_INPUT_WAIT_MS = 1000,
	WAIT_FOREVER = -1,
};

enum {				  /* what a verb needs in the environment */
       NEEDS_ATTACHMENT = 1 << 0, /* CNI_CONTAINERID and CNI_IFNAME */
       NEEDS_NETNS = 1 << 1,
};

static const struct verb {
	const char *name;
	int (*run)(const struct cni_call *call, char **ret_output, struct cni_failure *failure);
	unsigned needs;
	enum cni_version since;
	bool tolerant; /* goes on when configuration or CNI_ARGS are wrong */
} verbs[] = {
	{"ADD", cni_add, NEEDS_ATTACHMENT | NEEDS_NETNS, CNI_0_3_0, false},
	{"DEL", cni_del, NEEDS_ATTACHMENT, CNI_0_3_0, true},
	{"CHECK", cni_check, NEEDS_ATTACHMENT | NEEDS_NETNS, CNI_0_4_0, false},
	{"GC", cni_gc, 0, CNI_1_1_0, false},
	{"STATUS", cni_status, 0, CNI_1_1_0, false},
};

/* ---- input and output --------------------------------------------------------------------- */

/* Reads stdin to its end; *ret_text gets a NUL that is not counted. */
static int read_input(int wait_ms, char **ret_text, size_t *ret_size, struct error *err)
{
	scoped_free char *text = NULL;
	size_t used = 0, room = 0;
	ssize_t n;

	do {
		struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};

		if (room - used < 2) {
			char *grown = realloc(text, room + INPUT_STEP);

			if (!grown)
				return error_set(err, ENOMEM, "read stdin");
			text = grown;
			room += INPUT_STEP;
		}
		if (wait_ms != WAIT_FOREVER && poll(&p, 1, wait_ms) == 0)
			return error_set(err, ETIMEDOUT, "read stdin");
		n = read(STDIN_FILENO, text + used, room - used - 1);
		if (n < 0 && errno != EINTR)
			return error_set(err, errno, "read stdin");
		used += n > 0 ? (size_t)n : 0;
		if (used > INPUT_MAX)
			return error_set(err, EFBIG,
					 "read stdin: the configuration is larger than %d bytes",
					 INPUT_MAX);
	} while (n != 0);
	text[used] = '\0';
	*ret_text = take_ptr(text);
	*ret_size = used;
	return 0;
}

static int write_output(const char *text)
{
	size_t size = strlen(text);

	while (size > 0) {
		ssize_t n = write(STDOUT_FILENO, text, size);

		if (n < 0 && errno != EINTR)
			return -errno;
		text += n > 0 ? n : 0;
		size -= n > 0 ? (size_t)n : 0;
	}
	return 0;
}

/* Prints the error object; the exit status. */
static int report(enum cni_version version, const struct cni_failure *failure)
{
	scoped_free char *text = cni_reply_error(version, failure);

	write_output(text ? text
			  : "{\"cniVersion\":\"1.1.0\",\"code\":100,\"msg\":\"out of memory\"}");
	write_output("\n");
	return EXIT_FAILURE;
}

/* ---- environment -------------------------------------------------------------------------- */

/* An empty variable is an absent one, as in the CNI library. */
static const char *get_variable(const char *name)
{
	const char *value = getenv(name);

	return value && *value ? value : NULL;
}

static int check_attachment(struct cni_call *call, struct cni_failure *failure)
{
	struct error err;

	if (cni_container_id_check(call->container_id, &err) < 0 ||
	    cni_if_name_check(call->if_name, &err) < 0)
		return cni_fail(failure, CNI_ERROR_ENVIRONMENT, "%s", err.text);
	return 0;
}

static int read_environment(const struct verb *verb, struct cni_call *call,
			    struct cni_failure *failure)
{
	const struct {
		const char *name;
		const char **slot;
		unsigned needed_by;
	} variables[] = {
		{"CNI_CONTAINERID", &call->container_id, NEEDS_ATTACHMENT},
		{"CNI_IFNAME", &call->if_name, NEEDS_ATTACHMENT},
		{"CNI_NETNS", &call->netns, NEEDS_NETNS},
	};
	char missing[64] = "";

	for (size_t i = 0; i < sizeof(variables) / sizeof(*variables); i++) {
		size_t used = strlen(missing);

		*variables[i].slot = get_variable(variables[i].name);
		if (!*variables[i].slot && (verb->needs & variables[i].needed_by))
			snprintf(missing + used, sizeof(missing) - used, "%s%s", used ? ", " : "",
				 variables[i].name);
	}
	if (*missing)
		return cni_fail(failure, CNI_ERROR_ENVIRONMENT, "%s needs %s", verb->name, missing);
	return verb->needs & NEEDS_ATTACHMENT ? check_attachment(call, failure) : 0;
}

static int read_args(const struct verb *verb, struct cni_call *call, struct cni_failure *failure)
{
	struct error err;

	if (!(verb->needs & NEEDS_ATTACHMENT) ||
	    cni_args_parse(getenv("CNI_ARGS"), &call->args, &err) == 0)
		return 0;
	if (verb->tolerant) {
		log_error(LOG_WARN, &err, "pod's name not known", "container", call->container_id,
			  NULL);
		return 0;
	}
	return cni_fail(failure, CNI_ERROR_ENVIRONMENT, "%s", err.text);
}

/* ---- configuration ------------------------------------------------------------------------ */

static int fail_version(struct cni_failure *failure, const char *message)
{
	cni_fail(failure, CNI_ERROR_VERSION, "%s", message);
	cni_fail_details(failure, "supported versions: %s to %s", cni_version_name(CNI_0_3_0),
			 cni_version_name(CNI_VERSION_NEWEST));
	return -1;
}

static int load_conf(const struct verb *verb, struct cni_call *call, struct cni_failure *failure)
{
	struct error err;
	int rc = cni_conf_load(call->input, call->input_size, &call->conf, &err);

	if (rc == -EPROTONOSUPPORT)
		return fail_version(failure, err.text);
	if (rc < 0)
		return cni_fail(failure, rc == -EBADMSG ? CNI_ERROR_DECODE : CNI_ERROR_CONFIG, "%s",
				err.text);
	if (call->conf.version < verb->since) {
		char text[64];

		snprintf(text, sizeof(text), "cniVersion %s does not have %s",
			 cni_version_name(call->conf.version), verb->name);
		return fail_version(failure, text);
	}
	if (cni_conf_read(&call->conf, &err) < 0) {
		if (!verb->tolerant)
			return cni_fail(failure, CNI_ERROR_CONFIG, "%s", err.text);
		log_error(LOG_WARN, &err, "defaults used for the configuration", "container",
			  call->container_id, NULL);
	}
	log_setup(call->conf.log_level, LOG_TEXT);
	return 0;
}

/* ---- verbs -------------------------------------------------------------------------------- */

static void call_done(struct cni_call *call)
{
	cni_args_done(&call->args);
	cni_conf_done(&call->conf);
}

static int run_verb(const struct verb *verb)
{
	scoped(call_done) struct cni_call call = {.conf.version = CNI_VERSION_NEWEST};
	scoped_free char *input = NULL, *output = NULL;
	struct cni_failure failure;
	struct error err;

	if (read_environment(verb, &call, &failure) < 0)
		return report(call.conf.version, &failure);
	if (read_input(WAIT_FOREVER, &input, &call.input_size, &err) < 0) {
		char text[sizeof(failure.message)];

		cni_fail(&failure, CNI_ERROR_IO, "%s", error_format(&err, text, sizeof(text)));
		return report(call.conf.version, &failure);
	}
	call.input = input;
	if (load_conf(verb, &call, &failure) < 0 || read_args(verb, &call, &failure) < 0 ||
	    verb->run(&call, &output, &failure) < 0)
		return report(call.conf.version, &failure);
	if (output && (write_output(output) < 0 || write_output("\n") < 0))
		return EXIT_FAILURE;
	return EXIT_SUCCESS;
}

/*
 * The answer has the version that was asked with. Runtimes before 0.4.0 send nothing, and may
 * leave stdin open, so this does not wait for long.
 */
static int run_version(void)
{
	enum cni_version version = CNI_VERSION_NEWEST;
	scoped(cni_conf_done) struct cni_conf conf = {0};
	scoped_free char *input = NULL, *output = NULL;
	struct error ignored;
	size_t size = 0;

	if (!isatty(STDIN_FILENO) &&
	    read_input(VERSION_INPUT_WAIT_MS, &input, &size, &ignored) == 0 &&
	    cni_conf_load(input, size, &conf, &ignored) == 0)
		version = conf.version;
	output = cni_reply_version(version);
	if (!output || write_output(output) < 0 || write_output("\n") < 0)
		return EXIT_FAILURE;
	return EXIT_SUCCESS;
}

static int run_command(const char *command)
{
	struct cni_failure failure;

	if (strcmp(command, "VERSION") == 0)
		return run_version();
	for (size_t i = 0; i < sizeof(verbs) / sizeof(*verbs); i++)
		if (strcmp(command, verbs[i].name) == 0)
			return run_verb(&verbs[i]);
	cni_fail(&failure, CNI_ERROR_ENVIRONMENT, "CNI_COMMAND \"%.64s\" is not known", command);
	return report(CNI_VERSION_NEWEST, &failure);
}

/* ---- start -------------------------------------------------------------------------------- */

/* A descriptor that we open must not become stdout: JSON would be written into it. */
static int fill_standard_descriptors(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
			return -1;
	return 0;
}

static int run_by_hand(int argc, char **argv)
{
	static const char usage[] =
		"sockmesh-cni is a CNI plugin: a container runtime runs it, with CNI_COMMAND in "
		"the\n"
		"environment and the network configuration on stdin. See sockmesh-cni(8).\n"
		"\n"
		"  --help     this text\n"
		"  --version  the version of this program\n";
	struct cni_failure failure;

	if (argc == 2 && strcmp(argv[1], "--version") == 0)
		return write_output("sockmesh-cni " SOCKMESH_VERSION "\n") < 0;
	if (argc == 2 && strcmp(argv[1], "--help") == 0)
		return write_output(usage) < 0;
	fputs(usage, stderr);
	cni_fail(&failure, CNI_ERROR_ENVIRONMENT, "CNI_COMMAND is missing");
	return report(CNI_VERSION_NEWEST, &failure);
}

int main(int argc, char **argv)
{
	const char *command = get_variable("CNI_COMMAND");

	if (fill_standard_descriptors() < 0)
		return EXIT_FAILURE;
	signal(SIGPIPE, SIG_IGN);
	log_setup(LOG_WARN, LOG_TEXT);
	return command ? run_command(command) : run_by_hand(argc, argv);
}
