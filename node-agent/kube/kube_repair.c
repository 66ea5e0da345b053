/* SPDX-License-Identifier: Apache-2.0 */
#include "kube_repair.h"

#include <string.h>

#define BLANKS " \t\n\v\f\r"

static bool same_trimmed(const char *a, const char *b)
{
	size_t a_size, b_size;

	a += strspn(a, BLANKS);
	b += strspn(b, BLANKS);
	a_size = strlen(a);
	b_size = strlen(b);
	while (a_size && strchr(BLANKS, a[a_size - 1]))
		a_size--;
	while (b_size && strchr(BLANKS, b[b_size - 1]))
		b_size--;
	return a_size == b_size && memcmp(a, b, a_size) == 0;
}

static bool is_failure(const struct kube_repair_config *cfg,
		       const struct kube_termination *termination)
{
	if (!termination->known || termination->exit_code == 0)
		return false;
	if (cfg->exit_code && termination->exit_code != cfg->exit_code)
		return false;
	return !cfg->message || !cfg->message[strspn(cfg->message, BLANKS)] ||
	       same_trimmed(cfg->message, termination->message);
}

/* Istio waits until the container is started again; its end is known before. */
static bool has_failed(const struct kube_repair_config *cfg, const struct kube_validation *v)
{
	if (v->state == KUBE_VALIDATION_FAILED && is_failure(cfg, &v->current))
		return true;
	return is_failure(cfg, &v->last);
}

static enum kube_repair configured(const struct kube_repair_config *cfg, const char **ret_reason)
{
	*ret_reason = "its init container found no redirection";
	if (cfg->redirect)
		return KUBE_REPAIR_REDIRECT;
	if (cfg->delete)
		return KUBE_REPAIR_DELETE;
	if (cfg->label)
		return KUBE_REPAIR_LABEL;
	*ret_reason = "its init container found no redirection, and no repair is configured";
	return KUBE_REPAIR_NONE;
}

/*
 * A pod that is not restarted fails for good at the first test, so it must be redirected before:
 * while the init container has not ended yet.
 */
static enum kube_repair before_the_test(const struct kube_repair_config *cfg,
					const struct kube_pod *pod, const char **ret_reason)
{
	bool due = pod->validation.state == KUBE_VALIDATION_WAITING ||
		   pod->validation.state == KUBE_VALIDATION_RUNNING;

	if (!cfg->redirect || !due || pod->restart != KUBE_RESTART_NEVER || pod->n_ips == 0) {
		*ret_reason = "its init container has found nothing wrong so far";
		return KUBE_REPAIR_NONE;
	}
	*ret_reason = "it is never restarted, and its init container would find no redirection";
	return KUBE_REPAIR_REDIRECT;
}

enum kube_repair kube_repair_decide(const struct kube_repair_config *cfg,
				    const struct kube_pod *pod, bool redirected,
				    const char **ret_reason)
{
	const char *annotation = cfg->annotation ? cfg->annotation : "sidecar.istio.io/status";
	const char *none = NULL;

	if (!json_object_get(pod->annotations, annotation))
		none = "it has no sidecar";
	else if (pod->validation.state == KUBE_VALIDATION_ABSENT)
		none = "it does not test its redirection";
	else if (pod->validation.state == KUBE_VALIDATION_PASSED)
		none = "its init container found it redirected";
	else if (kube_pod_ended(pod))
		none = "it has ended";
	else if (pod->deleting)
		none = "it is being deleted";
	else if (redirected)
		none = "it is redirected by now";
	if (none) {
		*ret_reason = none;
		return KUBE_REPAIR_NONE;
	}
	if (!has_failed(cfg, &pod->validation))
		return before_the_test(cfg, pod, ret_reason);
	return configured(cfg, ret_reason);
}
