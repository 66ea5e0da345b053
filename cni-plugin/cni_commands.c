/* SPDX-License-Identifier: Apache-2.0 */
#include "cni_commands.h"

#include "agent_client.h"
#include "agent_protocol.h"
#include "cni_prev_result.h"
#include "json.h"
#include "pod_cgroup.h"
#include "pod_membership.h"
#include "scoped.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <linux/nsfs.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>

/* ---- the pieces that verbs share ---------------------------------------------------------- */

static int out_of_memory(struct cni_failure *failure)
{
	return cni_fail(failure, CNI_ERROR_OTHER, "out of memory");
}

/* The descriptor that names the pod to the agent: a path could be raced. */
static int open_netns(const char *path, int *ret, struct error *err)
{
	/* O_NONBLOCK: should the path be a FIFO, we would wait for its writer. */
	scoped_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct statfs fs;
	int type;

	if (fd < 0 || fstatfs(fd, &fs) < 0)
		return error_set(err, errno, "CNI_NETNS %s", path);
	if (fs.f_type != NSFS_MAGIC)
		return error_set(err, EINVAL, "CNI_NETNS %s is not a namespace file", path);
	type = ioctl(fd, NS_GET_NSTYPE);
	if (type >= 0 && type != CLONE_NEWNET)
		return error_set(err, EINVAL, "CNI_NETNS %s is not a network namespace", path);
	*ret = take_fd(&fd);
	return 0;
}

/* The pod's cgroup, or NULL: that is no error, and a host may have no cgroup2 at all. */
static char *find_cgroup(const struct cni_call *call)
{
	struct pod_cgroup_query query = {
		.cgroup_path = call->conf.cgroup_path,
		.pod_uid = call->args.pod_uid,
		.container_id = call->container_id,
	};
	char root[PATH_MAX], path[PATH_MAX];
	struct error err;

	if (pod_cgroup_mount("/proc/self/mountinfo", root, sizeof(root), &err) < 0 ||
	    pod_cgroup_find(root, &query, path, sizeof(path), &err) < 0) {
		log_error(LOG_DEBUG, &err, "cgroup not found", "container", call->container_id,
			  NULL);
		return NULL;
	}
	return strdup(path);
}

/* What add, del and check have in common. The strings stay the call's. */
static struct agent_request attachment_request(const struct cni_call *call, enum agent_op op)
{
	return (struct agent_request){
		.op = op,
		.container_id = (char *)call->container_id,
		.if_name = (char *)call->if_name,
		.network = (char *)call->conf.name,
		.netns = (char *)call->netns,
		.pod_namespace = call->args.pod_namespace,
		.pod_name = call->args.pod_name,
		.pod_uid = call->args.pod_uid,
		.uid = -1,
		.gid = -1,
	};
}

static int ask(const struct cni_call *call, const struct agent_request *request, int netns_fd,
	       struct agent_reply *ret, struct error *err)
{
	return agent_client_ask(call->conf.run_dir, call->conf.timeout_ms, request, netns_fd, ret,
				err);
}

static void log_reply(const struct cni_call *call, const char *message,
		      const struct agent_reply *reply)
{
	log_write(LOG_DEBUG, message, "container", call->container_id, "namespace",
		  call->args.pod_namespace, "pod", call->args.pod_name, "decision", reply->decision,
		  "reason", reply->reason, "engine", reply->engine, NULL);
}

static void log_exempt(const struct cni_call *call, const char *reason)
{
	log_write(LOG_DEBUG, "pod is left alone", "container", call->container_id, "namespace",
		  call->args.pod_namespace, "pod", call->args.pod_name, "reason", reason, NULL);
}

static int fail_refused(struct cni_failure *failure, const struct agent_reply *reply, bool checking)
{
	cni_fail(failure, cni_reply_code(reply, checking), "sockmesh-agent: %s",
		 reply->message ? reply->message : "refused");
	cni_fail_details(failure, "agent's code: %s",
			 reply->code == AGENT_CODE_NONE ? "unknown" : agent_code_name(reply->code));
	return -1;
}

/* A request that no agent could be sent, or an agent that did not answer. */
static int fail_unsent(const struct cni_call *call, struct cni_failure *failure,
		       const struct error *err, const char *why)
{
	char text[sizeof(failure->message)];

	if (err->code == E2BIG) {
		cni_fail(failure, CNI_ERROR_BAD_ANNOTATION,
			 "the pod's mesh annotations are too large");
		cni_fail_details(failure, "%s", err->text);
		return -1;
	}
	if (err->code == EINVAL)
		return cni_fail(failure, CNI_ERROR_ENVIRONMENT, "%s", err->text);
	cni_fail(failure, CNI_ERROR_TRY_LATER, "sockmesh-agent does not answer: %s",
		 error_format(err, text, sizeof(text)));
	cni_fail_details(failure, "runDir %s, onAgentDown deny, and the pod may be in the mesh: %s",
			 call->conf.run_dir, why);
	return -1;
}

static bool is_absence(const struct error *err)
{
	return err->code != E2BIG && err->code != EINVAL;
}

/* Whether the pod may go on without the agent. */
static bool may_proceed(const struct cni_call *call, enum pod_membership membership)
{
	return membership == POD_OUTSIDE || call->conf.on_agent_down == ON_AGENT_DOWN_ALLOW;
}

/* ---- ADD ---------------------------------------------------------------------------------- */

static int read_prev_result(const struct cni_call *call, struct cni_prev_result *ret,
			    struct cni_failure *failure)
{
	struct error err;

	if (!call->conf.prev_result && call->conf.chained) {
		cni_fail(failure, CNI_ERROR_CONFIG, "prevResult is missing");
		cni_fail_details(failure, "sockmesh-cni runs after the plugin that makes the "
					  "interface; \"chained\": false says that it need not");
		return -1;
	}
	if (!call->conf.prev_result) {
		*ret = (struct cni_prev_result){.text = cni_reply_empty_result(call->conf.version)};
		return ret->text ? 0 : out_of_memory(failure);
	}
	if (cni_prev_result_read(call->input, call->input_size, call->conf.prev_result,
				 call->conf.version, ret, &err) == 0)
		return 0;
	if (err.code == ENOMEM)
		return out_of_memory(failure);
	return cni_fail(failure, CNI_ERROR_CONFIG, "%s", err.text);
}

/* Asks the agent to take the pod in. 0 also when the pod may start without an answer. */
static int register_pod(const struct cni_call *call, const struct cni_prev_result *prev,
			enum pod_membership membership, const char *why,
			struct cni_failure *failure)
{
	struct agent_request request = attachment_request(call, AGENT_ADD);
	scoped_json json_t *annotations = NULL;
	scoped_free char *cgroup = find_cgroup(call);
	scoped(agent_reply_done) struct agent_reply reply = {0};
	scoped_fd int netns_fd = -1;
	struct error err;

	if (open_netns(call->netns, &netns_fd, &err) < 0) {
		char text[sizeof(failure->message)];

		return cni_fail(failure, CNI_ERROR_ENVIRONMENT, "%s",
				error_format(&err, text, sizeof(text)));
	}
	if (call->conf.annotations_known) {
		annotations = pod_membership_annotations(call->conf.annotations);
		if (!annotations)
			return out_of_memory(failure);
	}
	request.annotations = annotations;
	request.cgroup = cgroup;
	request.ips = prev->ips;
	request.n_ips = prev->n_ips;
	if (ask(call, &request, netns_fd, &reply, &err) < 0) {
		if (!is_absence(&err) || !may_proceed(call, membership))
			return fail_unsent(call, failure, &err, why);
		log_error(LOG_WARN, &err, "pod admitted without the agent", "container",
			  call->container_id, "namespace", call->args.pod_namespace, "pod",
			  call->args.pod_name, "reason", why, NULL);
		return 0;
	}
	if (reply.ok) {
		log_reply(call, "pod registered", &reply);
		return 0;
	}
	/* An agent that speaks no version of ours is as good as none. */
	if (reply.code == AGENT_CODE_VERSION && may_proceed(call, membership)) {
		log_write(LOG_WARN, "pod admitted without the agent", "container",
			  call->container_id, "namespace", call->args.pod_namespace, "pod",
			  call->args.pod_name, "reason", reply.message, NULL);
		return 0;
	}
	return fail_refused(failure, &reply, false);
}

int cni_add(const struct cni_call *call, char **ret_output, struct cni_failure *failure)
{
	scoped(cni_prev_result_done) struct cni_prev_result prev = {0};
	enum pod_membership membership;
	const char *why;

	if (read_prev_result(call, &prev, failure) < 0)
		return -1;
	membership = pod_membership_guess(&call->conf, &call->args, &why);
	if (membership == POD_EXEMPT)
		log_exempt(call, why);
	else if (register_pod(call, &prev, membership, why, failure) < 0)
		return -1;
	*ret_output = take_ptr(prev.text);
	return 0;
}

/* ---- DEL ---------------------------------------------------------------------------------- */

/*
 * Never fails: what the agent does not hear now it finds out when the namespace is gone, and a pod
 * that cannot be deleted helps nobody.
 */
int cni_del(const struct cni_call *call, char **ret_output, struct cni_failure *failure)
{
	struct agent_request request = attachment_request(call, AGENT_DEL);
	scoped(agent_reply_done) struct agent_reply reply = {0};
	scoped_fd int netns_fd = -1;
	struct error err;

	(void)failure;
	*ret_output = NULL;
	if (call->netns && open_netns(call->netns, &netns_fd, &err) < 0)
		log_error(LOG_DEBUG, &err, "namespace is gone", "container", call->container_id,
			  NULL);
	if (ask(call, &request, netns_fd, &reply, &err) < 0)
		log_error(LOG_WARN, &err, "agent not told that the pod is gone", "container",
			  call->container_id, NULL);
	else if (!reply.ok)
		log_write(LOG_WARN, "agent could not remove the pod", "container",
			  call->container_id, "reason", reply.message, NULL);
	else
		log_reply(call, "pod removed", &reply);
	return 0;
}

/* ---- CHECK -------------------------------------------------------------------------------- */

/* The agent's answer, seen from a pod that may or may not have been registered. */
static int judge_check(const struct cni_call *call, const struct agent_reply *reply,
		       enum pod_membership membership, struct cni_failure *failure)
{
	if (reply->ok) {
		log_reply(call, "pod checked", reply);
		return 0;
	}
	/* Such a pod may have been let in while the agent was away. */
	if (may_proceed(call, membership) &&
	    (reply->code == AGENT_CODE_VERSION ||
	     (membership == POD_OUTSIDE && reply->code == AGENT_CODE_NOT_FOUND)))
		return 0;
	return fail_refused(failure, reply, true);
}

int cni_check(const struct cni_call *call, char **ret_output, struct cni_failure *failure)
{
	struct agent_request request = attachment_request(call, AGENT_CHECK);
	scoped(cni_prev_result_done) struct cni_prev_result prev = {0};
	scoped(agent_reply_done) struct agent_reply reply = {0};
	scoped_fd int netns_fd = -1;
	enum pod_membership membership;
	struct error err;
	const char *why;

	*ret_output = NULL;
	if (read_prev_result(call, &prev, failure) < 0)
		return -1;
	membership = pod_membership_guess(&call->conf, &call->args, &why);
	if (membership == POD_EXEMPT) {
		log_exempt(call, why);
		return 0;
	}
	if (open_netns(call->netns, &netns_fd, &err) < 0) {
		char text[sizeof(failure->message)];

		return cni_fail(failure, CNI_ERROR_ENVIRONMENT, "%s",
				error_format(&err, text, sizeof(text)));
	}
	if (ask(call, &request, netns_fd, &reply, &err) == 0)
		return judge_check(call, &reply, membership, failure);
	if (!is_absence(&err) || !may_proceed(call, membership))
		return fail_unsent(call, failure, &err, why);
	log_error(LOG_WARN, &err, "pod not checked", "container", call->container_id, NULL);
	return 0;
}

/* ---- GC and STATUS ------------------------------------------------------------------------ */

static void attachments_done(struct agent_attachment **attachments)
{
	free(*attachments);
}

/* The strings stay the configuration's. */
static int read_attachment(const json_t *item, size_t i, struct agent_attachment *ret,
			   struct error *err)
{
	const char *container_id = NULL, *if_name = NULL;
	char where[64];
	int rc;

	snprintf(where, sizeof(where), "cni.dev/valid-attachments[%zu].", i);
	if (!json_is_object(item))
		return error_set(err, EINVAL, "cni.dev/valid-attachments[%zu] is not an object", i);
	rc = json_get_string(item, "containerID", where, &container_id, err);
	if (rc == 0)
		rc = json_get_string(item, "ifname", where, &if_name, err);
	if (rc < 0)
		return rc;
	if (!container_id || !if_name)
		return error_set(err, EINVAL, "%s%s is missing", where,
				 container_id ? "ifname" : "containerID");
	*ret = (struct agent_attachment){(char *)container_id, (char *)if_name};
	return 0;
}

int cni_gc(const struct cni_call *call, char **ret_output, struct cni_failure *failure)
{
	struct agent_request request = {
		.op = AGENT_GC,
		.network = (char *)call->conf.name,
		.uid = -1,
		.gid = -1,
	};
	scoped(attachments_done) struct agent_attachment *valid = NULL;
	scoped(agent_reply_done) struct agent_reply reply = {0};
	size_t n = json_array_size(call->conf.attachments), i;
	char text[sizeof(failure->message)];
	struct error err;
	json_t *item;

	*ret_output = NULL;
	/* Without the list nothing would be valid, and every pod of the node would lose its rules.
	 */
	if (!call->conf.has_attachments)
		return cni_fail(failure, CNI_ERROR_CONFIG, "cni.dev/valid-attachments is missing");
	valid = calloc(n + 1, sizeof(*valid));
	if (!valid)
		return out_of_memory(failure);
	json_array_foreach (call->conf.attachments, i, item)
		if (read_attachment(item, i, &valid[i], &err) < 0)
			return cni_fail(failure, CNI_ERROR_CONFIG, "%s", err.text);
	request.valid = valid;
	request.n_valid = n;
	if (ask(call, &request, -1, &reply, &err) < 0)
		return cni_fail(failure, is_absence(&err) ? CNI_ERROR_TRY_LATER : CNI_ERROR_OTHER,
				"GC: %s", error_format(&err, text, sizeof(text)));
	return reply.ok ? 0 : fail_refused(failure, &reply, false);
}

/* Whether ADD would work now. Where pods start without the agent, it always does. */
int cni_status(const struct cni_call *call, char **ret_output, struct cni_failure *failure)
{
	struct agent_request request = {.op = AGENT_STATUS, .uid = -1, .gid = -1};
	scoped(agent_reply_done) struct agent_reply reply = {0};
	char text[sizeof(failure->message)];
	struct error err;

	*ret_output = NULL;
	if (call->conf.on_agent_down == ON_AGENT_DOWN_ALLOW)
		return 0;
	if (ask(call, &request, -1, &reply, &err) < 0)
		return cni_fail(failure, CNI_ERROR_NOT_AVAILABLE,
				"sockmesh-agent does not answer: %s",
				error_format(&err, text, sizeof(text)));
	if (reply.ok)
		return 0;
	fail_refused(failure, &reply, false);
	failure->code = CNI_ERROR_NOT_AVAILABLE;
	return -1;
}
