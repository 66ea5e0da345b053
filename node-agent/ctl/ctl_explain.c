/* SPDX-License-Identifier: Apache-2.0 */
#include "agent_protocol.h"
#include "ctl.h"
#include "ctl_print.h"
#include "error.h"

#include <errno.h>
#include <string.h>

static int request(const struct ctl_options *opt, struct agent_request *req, struct error *err)
{
	if (!opt->pod || !opt->to)
		return error_set(err, EINVAL,
				 "explain needs --pod NAMESPACE/NAME and --to ADDR:PORT");
	if (ip_endpoint_parse(opt->to, &req->to, &req->to_port, err) < 0)
		return error_wrap(err, "--to");
	req->op = AGENT_EXPLAIN;
	req->have_to = true;
	req->udp = opt->udp;
	req->uid = opt->uid;
	req->gid = opt->gid;
	if (opt->interface) {
		req->interface = strdup(opt->interface);
		if (!req->interface)
			return error_set(err, ENOMEM, "--interface");
	}
	return ctl_set_pod(opt->pod, req, err);
}

/* The ids that the agent decided with: those given, else ones that it takes an application to have.
 */
static void show_opener(const struct ctl_options *opt, const json_t *answer, struct ctl_out *out)
{
	json_int_t uid = ctl_integer(answer, "uid", opt->uid);
	json_int_t gid = ctl_integer(answer, "gid", opt->gid);

	if (uid < 0 || gid < 0) /* the agent needed no ids to decide */
		return;
	ctl_field(out, "Opened by", CTL_PLAIN,
		  "uid %" JSON_INTEGER_FORMAT "%s, gid %" JSON_INTEGER_FORMAT "%s", uid,
		  opt->uid < 0 ? " (assumed)" : "", gid, opt->gid < 0 ? " (assumed)" : "");
}

static void show(const struct ctl_options *opt, const json_t *answer, struct ctl_out *out)
{
	const char *verdict = ctl_string(answer, "verdict", "");
	const char *proxy = ctl_string(answer, "proxy", NULL);

	ctl_field(out, "Connection", CTL_PLAIN, "from %s to %s, %s%s%s%s", opt->pod, opt->to,
		  opt->udp ? "UDP" : "TCP", opt->interface ? ", by " : "", opt->interface ?: "",
		  ctl_true(answer, "destinationIsLocal") ? "; an address of the pod itself" : "");
	show_opener(opt, answer, out);
	if (proxy && !*proxy)
		ctl_field(out, "Verdict", CTL_WARN,
			  "refused: the node's proxy has no address of this family");
	else if (proxy)
		ctl_field(out, "Verdict", CTL_GOOD, "redirected to the node's proxy at %s", proxy);
	else if (strcmp(verdict, "redirect") == 0)
		ctl_field(out, "Verdict", CTL_GOOD,
			  "redirected to the proxy's port %" JSON_INTEGER_FORMAT,
			  ctl_integer(answer, "port", 0));
	else if (strcmp(verdict, "tproxy") == 0)
		ctl_field(out, "Verdict", CTL_GOOD,
			  "goes to the proxy's inbound port %" JSON_INTEGER_FORMAT
			  ", addresses unchanged",
			  ctl_integer(answer, "port", 0));
	else if (strcmp(verdict, "pass") == 0)
		ctl_field(out, "Verdict", CTL_WARN, "passes the proxy by");
	else
		ctl_field(out, "Verdict", CTL_PLAIN, "%s", verdict);
	ctl_field(out, "Rule", CTL_PLAIN, "%s", ctl_string(answer, "rule", ""));
	ctl_field(out, "Why", CTL_PLAIN, "%s", ctl_string(answer, "sentence", ""));
}

const struct ctl_verb ctl_explain = {
	.name = "explain",
	.arguments = "--pod NAMESPACE/NAME --to ADDR:PORT [OPTION...]",
	.help = "which rule decides about a connection that the pod opens, and why",
	.takes = CTL_TAKES_FLOW,
	.request = request,
	.status = ctl_always_ok,
	.show = show,
};
