/* SPDX-License-Identifier: Apache-2.0 */

/*
 * sockmesh-agent: reads its options, opens the redirect engine, takes over the pods of the agent
 * before it, and then serves <run-dir>/agent.sock from one epoll loop until it is told to end.
 * What it did to the kernel stays when it ends: pods stay redirected.
 */
#include "accelerate.h"
#include "agent_protocol.h"
#include "agent_server.h"
#include "cgroup.h"
#include "enrolment.h"
#include "error.h"
#include "event_loop.h"
#include "json.h"
#include "kernel_probe.h"
#include "kube_client.h"
#include "kube_config.h"
#include "kubelet.h"
#include "log.h"
#include "metrics.h"
#include "metrics_facts.h"
#include "metrics_server.h"
#include "options.h"
#include "pod_policy.h"
#include "queries.h"
#include "redirect.h"
#include "registration.h"
#include "run_dir.h"
#include "scoped.h"
#include "uninstall.h"
#include "workload_advice.h"

#include <cap-ng.h>
#include <curl/curl.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <time.h>

enum { EXIT_BAD_CONFIGURATION = 2 };

enum {
	MAX_PEERS = 256,
	PEER_TIMEOUT_MS = 10 * 1000,
	SWEEP_PERIOD_MS = 30 * 1000,
	SLICE_PAUSE_MS = 10, /* in which requests are served */
};

struct agent {
	struct options options;
	char cgroup_root[PATH_MAX], attach_dir[PATH_MAX];
	int lock_fd, signal_fd;
	struct event_loop *loop;
	struct redirect *redirect;
	struct accelerate *accelerate;
	struct registration *registration;
	struct kube_config *kube_config; /* both NULL: nobody asks the API server */
	struct kube_client *kube_client;
	struct enrolment *enrolment;
	struct agent_server *server;
	struct workload_advice *advice;
	struct metrics_server *metrics;
	struct queries queries;
	bool round_waits; /* for its next slice */
};

/* ---- events --------------------------------------------------------------------------------- */

static json_t *on_request(struct agent_request *req, int netns_fd, struct agent_call *call,
			  void *arg)
{
	struct agent *agent = arg;

	switch (req->op) {
	case AGENT_ADD:
	case AGENT_DEL:
	case AGENT_CHECK:
	case AGENT_GC:
		return enrolment_request(agent->enrolment, req, netns_fd, call);
	default:
		return queries_handle(&agent->queries, req);
	}
}

static void on_forgotten(void *arg, const struct pod *pod)
{
	struct agent *agent = arg;

	if (agent->enrolment) /* not yet while pods are taken over */
		enrolment_forgotten(agent->enrolment, pod);
}

static void on_broken(void *arg, const struct pod *pod)
{
	struct agent *agent = arg;

	if (agent->enrolment)
		enrolment_broken(agent->enrolment, pod);
}

static void on_sweep(void *arg)
{
	struct agent *agent = arg;

	registration_sweep(agent->registration);
}

static void on_namespaces_ended(void *arg)
{
	struct agent *agent = arg;

	if (agent->registration) /* not yet while pods are taken over */
		registration_sweep(agent->registration);
}

static void on_slice(void *arg);

static void reconcile_slice(struct agent *agent)
{
	struct error err = {0};

	agent->round_waits = registration_reconcile(agent->registration);
	if (agent->round_waits &&
	    event_loop_add_timer(agent->loop, SLICE_PAUSE_MS, 0, on_slice, agent, NULL, &err)) {
		agent->round_waits = false;
		log_error(LOG_WARN, &err, "cannot go on comparing pods with the kernel", NULL);
	}
}

static void on_slice(void *arg)
{
	reconcile_slice(arg);
}

static void on_reconcile(void *arg)
{
	struct agent *agent = arg;
	struct accelerate_host host;

	if (!agent->round_waits)
		reconcile_slice(agent);
	if (redirect_accelerate_host(agent->redirect, &host))
		accelerate_heal(agent->accelerate, &host);
	enrolment_reconcile(agent->enrolment);
}

static char *on_metrics(void *arg)
{
	const struct agent *agent = arg;
	scoped_json json_t *facts = metrics_facts(&agent->queries);

	return facts ? metrics_text(facts) : NULL;
}

static const char *on_not_ready(void *arg)
{
	const struct agent *agent = arg;

	return metrics_not_ready(&agent->queries);
}

static void on_signal(int fd, uint32_t events, void *arg)
{
	struct agent *agent = arg;
	struct signalfd_siginfo info;

	(void)events;
	if (read(fd, &info, sizeof(info)) != sizeof(info))
		return;
	log_write(LOG_INFO, "ending; pods stay redirected", "signal",
		  sigabbrev_np((int)info.ssi_signo), NULL);
	event_loop_stop(agent->loop);
}

/* ---- the process ---------------------------------------------------------------------------- */

/* Two descriptors or so for every pod at busy moments, and one for every peer. */
static void raise_descriptor_limit(void)
{
	struct rlimit limit;

	if (!getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur < limit.rlim_max) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

/*
 * Keeps what the work needs, of what there is: NET_ADMIN, BPF and PERFMON for the programs;
 * SYS_ADMIN to enter namespaces and mount bpffs; SYS_PTRACE to see whether a namespace is that of
 * process 1; NET_BROADCAST to hear of address changes in all namespaces; SYS_RESOURCE for locked
 * memory before Linux 5.11; DAC_OVERRIDE because a pod's namespace file may belong to another user;
 * NET_RAW for the socket through which legacy iptables talks to the kernel.
 */
static int drop_capabilities(struct error *err)
{
	static const unsigned needed[] = {CAP_NET_ADMIN,    CAP_NET_BROADCAST, CAP_BPF,
					  CAP_PERFMON,	    CAP_SYS_ADMIN,     CAP_SYS_PTRACE,
					  CAP_SYS_RESOURCE, CAP_DAC_OVERRIDE,  CAP_NET_RAW};
	bool have[sizeof(needed) / sizeof(needed[0])];

	for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++)
		have[i] = capng_have_capability(CAPNG_PERMITTED, needed[i]);
	capng_clear(CAPNG_SELECT_CAPS);
	for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++)
		if (have[i])
			capng_update(CAPNG_ADD, CAPNG_EFFECTIVE | CAPNG_PERMITTED, needed[i]);
	if (capng_apply(CAPNG_SELECT_CAPS))
		return error_set(err, EPERM, "give up the capabilities that are not needed");
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return error_set(err, errno, "set no_new_privs");
	return 0;
}

static int catch_signals(struct agent *agent, struct error *err)
{
	sigset_t signals;

	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	if (sigprocmask(SIG_BLOCK, &signals, NULL) < 0)
		return error_set(err, errno, "block signals");
	agent->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	if (agent->signal_fd < 0)
		return error_set(err, errno, "signalfd");
	return event_loop_add_fd(agent->loop, agent->signal_fd, EPOLLIN, on_signal, agent, NULL,
				 err);
}

/* ---- configuration -------------------------------------------------------------------------- */

static int find_cgroup(struct agent *agent, struct error *err)
{
	struct redirect_config *redirect = &agent->options.redirect;
	int r = 0;

	if (!redirect->cgroup_root) {
		r = cgroup2_find(NULL, agent->cgroup_root, sizeof(agent->cgroup_root), err);
		redirect->cgroup_root = r ? NULL : agent->cgroup_root;
	}
	if (!r)
		r = cgroup_attach_dir(redirect->cgroup_root, agent->attach_dir,
				      sizeof(agent->attach_dir), err);
	return r;
}

/* Options that every pod's decision reads, --owner-groups for one, fail here, not at each pod. */
static int check_policy(const struct options *options, struct error *err)
{
	scoped_json json_t *annotations = json_pack("{s:s}", "sockmesh.io/redirection", "sidecar");
	const struct pod_facts pod = {.annotations = annotations};
	struct pod_decision decision = {0};
	int r = pod_policy_decide(&options->policy, &pod, &decision, err);

	if (!r)
		pod_decision_done(&decision);
	return r;
}

static void warn_without_effect(const char *name, const char *sentence)
{
	log_write(LOG_WARN, sentence, "option", name, NULL);
}

static void warn_what_is_not_built(const struct options *options)
{
	options_without_effect(options, warn_without_effect);
}

/* ---- life ----------------------------------------------------------------------------------- */

/* For the engine, which keeps no descriptor of a pod's namespace. */
static int reopen_netns(void *arg, uint64_t cookie, int *ret_fd, struct error *err)
{
	const struct agent *agent = arg;

	if (!agent->registration)
		return error_set(err, ENOENT, "no pod is registered yet");
	return registration_reopen_netns(agent->registration, cookie, ret_fd, err);
}

static int visit_pod(void *arg, uint64_t cookie, redirect_visit_fn fn, void *fn_arg,
		     struct error *err)
{
	const struct agent *agent = arg;

	if (!agent->registration)
		return error_set(err, ENOENT, "no pod is registered yet");
	return registration_visit_pod(agent->registration, cookie, fn, fn_arg, err);
}

/* Why the engine may not have started: what it needs and this node does not have. */
static void log_missing_facilities(const struct agent *agent)
{
	struct kernel_probe *probe = NULL;
	struct error err = {0};

	if (kernel_probe_run(agent->options.redirect.cgroup_root, agent->options.redirect.bpffs_dir,
			     NULL, 0, &probe, &err))
		return;
	for (size_t i = 0; i < probe->n_facilities; i++) {
		const struct probe_facility *f = &probe->facilities[i];

		if (f->required && !f->found)
			log_write(LOG_ERROR, "this node lacks what the engine needs", "facility",
				  f->name, "tried", f->how, "found", f->detail, "without",
				  f->without, NULL);
	}
	kernel_probe_free(probe);
}

static int start_accelerator(struct agent *agent, struct error *err)
{
	struct accelerate_host host;
	bool found = redirect_accelerate_host(agent->redirect, &host);

	return accelerate_open(&agent->options.accelerate, found ? &host : NULL, agent->loop,
			       &agent->accelerate, err);
}

/* A configuration that is there and wrong is an error; none at all means outside of a cluster. */
static int open_kubernetes(struct agent *agent, struct error *err)
{
	struct options *options = &agent->options;
	struct kube_credentials credentials;
	int r;

	if (!options->kubernetes_auto ||
	    (!options->kubeconfig && !getenv("KUBERNETES_SERVICE_HOST")))
		return 0;
	r = kube_config_load(options->kubeconfig, &agent->kube_config, err);
	if (!r)
		r = kube_client_new(agent->loop, agent->kube_config, &agent->kube_client, err);
	if (r)
		return r;
	kube_config_credentials(agent->kube_config, &credentials);
	if (credentials.insecure)
		log_write(
			LOG_WARN,
			"the API server's certificate is not checked: whoever answers in its place "
			"decides which pods are in the mesh",
			"server", credentials.server, NULL);
	/* From here on a pod's labels and its namespace's count. */
	options->policy.selectors = &options->selectors;
	return 0;
}

static int open_enrolment(struct agent *agent, struct error *err)
{
	const struct options *options = &agent->options;
	const struct enrolment_config cfg = {.loop = agent->loop,
					     .policy = &options->policy,
					     .registration = agent->registration,
					     .redirect = agent->redirect,
					     .accelerate = agent->accelerate,
					     .client = agent->kube_client,
					     .selectors = &options->selectors,
					     .repair = &options->repair,
					     .node = options->node_name,
					     .ztunnel_socket = options->ztunnel_socket,
					     .ztunnel_socket_given = options->ztunnel_socket_given,
					     .admit_without_ztunnel =
						     options->admit_without_ztunnel,
					     .node_proxy = options->policy.node_proxy,
					     .reset_existing = options->reset_existing};

	return enrolment_open(&cfg, &agent->enrolment, err);
}

/* Before anything is changed in the kernel: an address that is in use is found out at once. */
static int open_metrics(struct agent *agent, struct error *err)
{
	const struct metrics_server_config cfg = {
		.address = agent->options.text[OPTION_METRICS_ADDRESS],
		.text = on_metrics,
		.not_ready = on_not_ready,
		.arg = agent};

	return *cfg.address ? metrics_server_open(&cfg, agent->loop, &agent->metrics, err) : 0;
}

static int start(struct agent *agent, struct error *err)
{
	const struct options *options = &agent->options;
	const struct registration_config registration = {.policy = &options->policy,
							 .run_dir = options->run_dir,
							 .max_pods = options->redirect.max_pods,
							 .forgotten = on_forgotten,
							 .broken = on_broken,
							 .hooks_arg = agent};
	const struct agent_server_config server = {.run_dir = options->run_dir,
						   .max_peers = MAX_PEERS,
						   .peer_timeout_ms = PEER_TIMEOUT_MS};
	struct registration_config with_engine = registration;
	struct timespec now;
	int r;

	agent->options.redirect.instance = run_dir_instance(options->run_dir);
	agent->options.redirect.open_netns = reopen_netns;
	agent->options.redirect.visit_pod = visit_pod;
	agent->options.redirect.namespaces_ended = on_namespaces_ended;
	agent->options.redirect.pods_arg = agent;
	r = redirect_open(&options->redirect, agent->loop, &agent->redirect, err);
	if (r) {
		if (options->redirect.mode == REDIRECT_AUTO ||
		    options->redirect.mode == REDIRECT_EBPF)
			log_missing_facilities(agent);
		return r;
	}
	r = start_accelerator(agent, err);
	if (r)
		return r;
	with_engine.redirect = agent->redirect;
	with_engine.accelerate = agent->accelerate;
	r = registration_open(&with_engine, &agent->registration, err);
	if (r)
		return r;
	accelerate_pods_settle(agent->accelerate);
	r = open_kubernetes(agent, err);
	if (!r)
		r = open_enrolment(agent, err);
	if (r)
		return r;
	r = workload_advice_new(agent->loop, agent->registration, agent->accelerate, &agent->advice,
				err);
	if (r)
		return r;
	clock_gettime(CLOCK_BOOTTIME, &now);
	agent->queries = (struct queries){.options = options,
					  .registration = agent->registration,
					  .redirect = agent->redirect,
					  .accelerate = agent->accelerate,
					  .advice = agent->advice,
					  .enrolment = agent->enrolment,
					  .attach_dir = agent->attach_dir,
					  .started_s = now.tv_sec};
	r = event_loop_add_timer(agent->loop, SWEEP_PERIOD_MS, SWEEP_PERIOD_MS, on_sweep, agent,
				 NULL, err);
	/* The first round at once: pods that an earlier agent gave another engine move. */
	if (!r)
		r = event_loop_add_timer(agent->loop, 0, options->reconcile_ms, on_reconcile, agent,
					 NULL, err);
	/* Last: a socket that answers says that everything else is ready. */
	return r ? r
		 : agent_server_open(&server, agent->loop, on_request, agent, &agent->server, err);
}

/* They would bypass the proxy, or reach it without where they are going. */
static void warn_of_ambient(const struct agent *agent)
{
	if (agent->options.policy.node_proxy &&
	    strcmp(redirect_engine(agent->redirect), "ebpf") != 0)
		log_write(LOG_ERROR,
			  "--ztunnel node needs eBPF, which this node does not have: ambient pods "
			  "are refused",
			  "engine", redirect_engine(agent->redirect), NULL);
}

/* The reason is in the line that says that it is ready. */
static bool fell_back(const struct agent *agent)
{
	return agent->options.redirect.mode == REDIRECT_AUTO &&
	       strcmp(redirect_engine(agent->redirect), "ebpf") != 0;
}

static int run(struct agent *agent, struct error *err)
{
	struct registration_counts counts;
	struct error ignored = {0};
	char redirected[24];
	int r = run_dir_make(agent->options.run_dir, err);

	if (!r)
		r = run_dir_lock(agent->options.run_dir, &agent->lock_fd, err);
	/* Only eBPF needs it, and says so itself. */
	if (!r && find_cgroup(agent, &ignored))
		agent->attach_dir[0] = '\0';
	if (!r)
		r = drop_capabilities(err);
	/* Before any thread: libcurl's condition. */
	if (!r && curl_global_init(CURL_GLOBAL_DEFAULT))
		r = error_set(err, EIO, "set up libcurl");
	if (!r)
		r = event_loop_new(&agent->loop, err);
	if (!r)
		r = catch_signals(agent, err);
	if (!r)
		r = open_metrics(agent, err);
	if (!r)
		r = start(agent, err);
	if (r)
		return r;
	warn_of_ambient(agent);
	registration_count(agent->registration, &counts);
	snprintf(redirected, sizeof(redirected), "%zu", counts.redirected);
	log_write(fell_back(agent) ? LOG_WARN : LOG_INFO, "ready", "version", SOCKMESH_VERSION,
		  "engine", redirect_engine(agent->redirect), "engine-reason",
		  redirect_reason(agent->redirect), "run-dir", agent->options.run_dir, "cgroup",
		  agent->attach_dir, "redirected-pods", redirected, NULL);
	return event_loop_run(agent->loop, err);
}

static void stop(struct agent *agent)
{
	metrics_server_close(agent->metrics);
	enrolment_close(agent->enrolment); /* answers those who wait */
	agent->enrolment = NULL;
	kube_client_free(agent->kube_client);
	kube_config_free(agent->kube_config);
	curl_global_cleanup();
	agent_server_close(agent->server);
	workload_advice_free(agent->advice);
	registration_close(agent->registration);
	accelerate_close(agent->accelerate);
	redirect_close(agent->redirect);
	event_loop_free(agent->loop);
	scoped_close(&agent->signal_fd);
	scoped_close(&agent->lock_fd);
	options_done(&agent->options);
}

static int report(int r, const struct error *err, const char *msg)
{
	if (r)
		log_error(LOG_ERROR, err, msg, NULL);
	return r ? EXIT_FAILURE : EXIT_SUCCESS;
}

static int act(struct agent *agent)
{
	struct error err = {0};

	switch (agent->options.action) {
	case ACTION_HELP:
		options_print_help(stdout);
		return EXIT_SUCCESS;
	case ACTION_VERSION:
		printf("sockmesh-agent %s\n", SOCKMESH_VERSION);
		return EXIT_SUCCESS;
	case ACTION_DUMP:
		options_print_dump(&agent->options, stdout);
		return EXIT_SUCCESS;
	case ACTION_UNINSTALL:
		agent->options.redirect.instance = run_dir_instance(agent->options.run_dir);
		/* Where nothing of cgroup2 is left there is nothing of ours on it either. */
		if (find_cgroup(agent, &err))
			agent->options.redirect.cgroup_root = NULL;
		return report(uninstall(&agent->options, &err), &err, "cannot uninstall");
	default:
		warn_what_is_not_built(&agent->options);
		return report(run(agent, &err), &err, "the agent failed");
	}
}

int main(int argc, char **argv)
{
	struct agent agent = {.lock_fd = -1, .signal_fd = -1};
	struct error err = {0};
	int status, r = options_parse(argc, argv, environ, &agent.options, &err);

	if (!r && agent.options.action != ACTION_HELP && agent.options.action != ACTION_VERSION)
		r = check_policy(&agent.options, &err);
	if (!r && agent.options.action == ACTION_RUN)
		r = kubelet_check(agent.options.redirect.kubelet_cgroup,
				  agent.options.redirect.cgroup_root, &err);
	if (r) {
		char text[sizeof(err.text) + 64];

		/* "Invalid argument" adds nothing to a sentence about a value. */
		fprintf(stderr, "sockmesh-agent: %s\n",
			err.code == EINVAL ? err.text : error_format(&err, text, sizeof(text)));
		options_done(&agent.options);
		return r == -ENOMEM ? EXIT_FAILURE : EXIT_BAD_CONFIGURATION;
	}
	log_setup(agent.options.log_level, agent.options.log_format);
	raise_descriptor_limit();
	status = act(&agent);
	stop(&agent);
	return status;
}
