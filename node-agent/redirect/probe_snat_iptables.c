/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Kubelet's probes with iptables, in the host's own nat table: a chain of ours, to which what
 * kubelet opens jumps, and nothing else. The addresses are in an ipset for each family, so that a
 * pod that comes or goes leaves the table alone, which may hold many thousand rules of
 * kube-proxy's; where the kernel or the node has no ipset, each is a rule of the chain.
 */
#include "probe_snat_private.h"

#include "error.h"
#include "iptables_run.h"
#include "iptables_text.h"
#include "netns.h"
#include "redirect.h"
#include "scoped.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { NAME_MAX_LENGTH = 32, PATH_TEXT_MAX = 512, HERE = -1 };
#define POD_COMMENT "netns "

struct ipt_host {
	struct iptables_programs programs[IPTABLES_BACKENDS];
	enum iptables_backend backend;
	char chain[NAME_MAX_LENGTH], set[2][NAME_MAX_LENGTH];
	bool ipv6, probed, has_ipset, can_match_cgroup;
	int netns_fd;
};

static const char *family_name(bool v6)
{
	return v6 ? "IPv6" : "IPv4";
}

static int no_memory(struct error *err)
{
	return error_set(err, ENOMEM, "iptables: make the host's rules");
}

/* ---- text ------------------------------------------------------------------------------------ */

struct text {
	FILE *out;
	char *bytes;
	size_t size;
};

static int text_open(struct text *t, struct error *err)
{
	*t = (struct text){0};
	t->out = open_memstream(&t->bytes, &t->size);
	return t->out ? 0 : no_memory(err);
}

/* The text, to be freed; NULL without memory. */
static char *text_close(struct text *t)
{
	if (t->out && fclose(t->out) == 0)
		return t->bytes;
	free(t->bytes);
	return NULL;
}

/* xt_cgroup takes the path below the root, which the cgroup's level tells from the rest. */
static bool cgroup_path(const struct kubelet *k, char ret[static PATH_TEXT_MAX])
{
	const char *start;
	size_t length = strlen(k->cgroup);

	while (length > 0 && k->cgroup[length - 1] == '/')
		length--;
	start = k->cgroup + length;
	for (uint32_t level = k->level; level > 0 && start > k->cgroup; level--)
		do
			start--;
		while (start > k->cgroup && *start != '/');
	if (*start != '/' || (size_t)(k->cgroup + length - start) >= PATH_TEXT_MAX)
		return false;
	/* What iptables-save would quote is not worth to be followed. */
	for (const char *at = start; at < k->cgroup + length; at++)
		if (strchr(" \"'\\\n\t", *at))
			return false;
	snprintf(ret, PATH_TEXT_MAX, "%.*s", (int)(k->cgroup + length - start - 1), start + 1);
	return true;
}

static void put_who(FILE *out, const struct snat_rules *rules)
{
	char path[PATH_TEXT_MAX];

	if (rules->who == SNAT_CGROUP && cgroup_path(rules->kubelet, path))
		fprintf(out, "-m cgroup --path %s ", path);
	else
		fprintf(out, "-m owner --uid-owner %u ", rules->kubelet->uid);
}

static const char *source_text(bool v6, char text[static IP_ADDRESS_TEXT_MAX])
{
	return ip_address_format(v6 ? &plan_probe_source6 : &plan_probe_source4, text);
}

static void put_pod_rule(FILE *out, const char *verb, const struct ipt_host *host,
			 const struct snat_entry *entry, bool v6)
{
	char pod[IP_ADDRESS_TEXT_MAX], source[IP_ADDRESS_TEXT_MAX];

	fprintf(out,
		"%s %s -d %s/%d -p tcp -m comment --comment \"" POD_COMMENT "%" PRIu64
		"\" -j SNAT --to-source %s\n",
		verb, host->chain, ip_address_format(&entry->address, pod), v6 ? 128 : 32,
		entry->cookie, source_text(v6, source));
}

static bool is_of(const struct snat_entry *entry, bool v6)
{
	return ip_address_is_v4(&entry->address) != v6;
}

static bool has_family(const struct snat_list *list, bool v6)
{
	for (size_t i = 0; i < list->n; i++)
		if (is_of(&list->entries[i], v6))
			return true;
	return false;
}

/* As iptables-save would show the chain and what leads to it. */
static int put_chain(const struct ipt_host *host, bool v6, const struct snat_rules *rules,
		     const struct snat_list *want, char **ret, struct error *err)
{
	char source[IP_ADDRESS_TEXT_MAX];
	struct text t;
	int r = text_open(&t, err);

	if (r)
		return r;
	fprintf(t.out, "*nat\n");
	if (want->n > 0 && rules->who != SNAT_NOBODY) {
		fprintf(t.out, ":%s - [0:0]\n-A POSTROUTING -p tcp ", host->chain);
		put_who(t.out, rules);
		fprintf(t.out, "-j %s\n", host->chain);
		if (host->has_ipset)
			fprintf(t.out,
				"-A %s -p tcp -m set --match-set %s dst -j SNAT --to-source %s\n",
				host->chain, host->set[v6], source_text(v6, source));
		for (size_t i = 0; !host->has_ipset && i < want->n; i++)
			if (is_of(&want->entries[i], v6))
				put_pod_rule(t.out, "-A", host, &want->entries[i], v6);
	} else if (want->n > 0) {
		fprintf(t.out, ":%s - [0:0]\n", host->chain); /* a note that there are sets */
	}
	fprintf(t.out, "COMMIT\n");
	*ret = text_close(&t);
	return *ret ? 0 : no_memory(err);
}

/* ---- what is there --------------------------------------------------------------------------- */

#define scoped_set scoped(iptables_set_done)

/* Our chain in one family of one backend. */
static int look(const struct ipt_host *host, enum iptables_backend backend, bool v6,
		struct iptables_set *ret, struct error *err)
{
	scoped_free char *saved = NULL;
	bool maybe[2];
	int r;

	iptables_may_be_there(backend, host->netns_fd, maybe);
	if (!maybe[v6] || !*host->programs[backend].save[v6])
		return 0;
	r = iptables_run_save(&host->programs[backend], v6, HERE, &saved, err);
	if (!r)
		r = iptables_text_parse(saved, ret, err);
	if (!r)
		iptables_set_keep(ret, host->chain);
	return r;
}

static int add_entry(struct snat_list *list, const char *address, const char *comment)
{
	struct snat_entry entry = {0};
	struct error ignored = {0};
	char text[IP_ADDRESS_TEXT_MAX + 4];

	snprintf(text, sizeof(text), "%s", address);
	text[strcspn(text, "/")] = '\0';
	if (ip_address_parse(text, &entry.address, &ignored))
		return 0;
	if (comment && !strncmp(comment, POD_COMMENT, strlen(POD_COMMENT)))
		entry.cookie = strtoull(comment + strlen(POD_COMMENT), NULL, 10);
	return snat_list_add(list, &entry);
}

static int entries_of_rules(const struct iptables_set *set, struct snat_list *ret)
{
	int r = 0;

	for (size_t i = 0; i < set->n; i++)
		for (size_t k = 0; !r && k < set->chains[i].n_rules; k++) {
			const char *spec = set->chains[i].rules[k].spec;
			scoped_free char *one = NULL, *two = NULL;
			const char *address = iptables_option_value(spec, "-d", &one);
			const char *comment = iptables_option_value(spec, "--comment", &two);

			if (address)
				r = add_entry(ret, address, comment);
		}
	return r;
}

/* "add NAME ADDRESS comment \"netns 7\"", as ipset save prints it. */
static int entry_of_line(const struct ipt_host *host, char *line, struct snat_list *ret,
			 bool *ret_any)
{
	char *rest = line, *verb = strsep(&rest, " "), *name = strsep(&rest, " ");
	char *address = strsep(&rest, " "), *comment = rest ? strchr(rest, '"') : NULL;

	if (!name || (strcmp(name, host->set[0]) != 0 && strcmp(name, host->set[1]) != 0))
		return 0;
	*ret_any = true;
	if (strcmp(verb, "add") != 0 || !address)
		return 0;
	return add_entry(ret, address, comment ? comment + 1 : NULL);
}

static int entries_of_sets(const struct ipt_host *host, struct snat_list *ret, bool *ret_any,
			   struct error *err)
{
	scoped_free char *saved = NULL;
	char *rest, *line;
	int r = iptables_run_ipset_save(HERE, &saved, err);

	rest = saved;
	while (!r && (line = strsep(&rest, "\n")))
		r = entry_of_line(host, line, ret, ret_any) ? no_memory(err) : 0;
	return r;
}

static int host_load(void *state, struct snat_list *ret, bool *ret_any, struct error *err)
{
	const struct ipt_host *host = state;
	struct snat_list list = {0};
	bool any = false;
	int r = 0;

	for (int i = 0; !r && i < 2 * IPTABLES_BACKENDS; i++) {
		scoped_set struct iptables_set set = {0};

		r = look(host, (enum iptables_backend)(i / 2), i % 2, &set, err);
		any |= set.n > 0;
		if (!r && entries_of_rules(&set, &list))
			r = no_memory(err);
	}
	/* Sets go after the chain, so that without a chain there are none. */
	if (!r && any) {
		struct error ignored = {0};

		r = entries_of_sets(host, &list, &any, &ignored) == -ENOMEM ? no_memory(err) : 0;
	}
	if (r) {
		free(list.entries);
		return r;
	}
	*ret = list;
	*ret_any = any;
	return 0;
}

/* ---- what this node can do ------------------------------------------------------------------- */

static int try_rule(const struct ipt_host *host, int netns_fd, const char *match, struct error *err)
{
	char text[256];
	int r = 0;

	for (int v6 = 0; !r && v6 <= host->ipv6; v6++) {
		char source[IP_ADDRESS_TEXT_MAX];

		snprintf(text, sizeof(text),
			 "*nat\n-A POSTROUTING -p tcp %s%s -j SNAT --to-source %s\nCOMMIT\n", match,
			 !strcmp(match, "-m set --match-set ")
				 ? (v6 ? "sockmesh-probe-v6 dst" : "sockmesh-probe-v4 dst")
				 : "",
			 source_text(v6, source));
		r = iptables_run_restore(&host->programs[host->backend], v6, netns_fd, text, err);
	}
	return r;
}

/* Once, when it is first needed; in a namespace that nobody uses. */
static int make_ready(struct ipt_host *host, struct error *err)
{
	scoped_fd int netns_fd = -1;
	struct error ignored = {0};
	int r;

	if (host->probed)
		return 0;
	r = netns_new(&netns_fd, err);
	if (!r)
		r = try_rule(host, netns_fd, "-m owner --uid-owner 0 -m comment --comment probe",
			     err);
	if (r)
		return r;
	host->can_match_cgroup = !try_rule(host, netns_fd, "-m cgroup --path /", &ignored);
	host->has_ipset =
		!iptables_run_ipset_restore(
			netns_fd,
			host->ipv6 ? "create sockmesh-probe-v4 hash:ip family inet comment\n"
				     "create sockmesh-probe-v6 hash:ip family inet6 comment\n"
				   : "create sockmesh-probe-v4 hash:ip family inet comment\n",
			&ignored) &&
		!try_rule(host, netns_fd, "-m set --match-set ", &ignored);
	host->probed = true;
	return 0;
}

static bool host_can_match_cgroup(void *state)
{
	struct ipt_host *host = state;
	struct error ignored = {0};

	return !make_ready(host, &ignored) && host->can_match_cgroup;
}

/* ---- changing -------------------------------------------------------------------------------- */

static void put_set_entry(FILE *out, const char *set, const struct snat_entry *entry)
{
	char text[IP_ADDRESS_TEXT_MAX];

	fprintf(out, "add %s %s comment \"" POD_COMMENT "%" PRIu64 "\"\n", set,
		ip_address_format(&entry->address, text), entry->cookie);
}

/* A second set is filled and takes the place of the first: no packet sees a half-filled one. */
static void put_whole_set(FILE *out, const struct ipt_host *host, bool v6,
			  const struct snat_list *want)
{
	const char *family = v6 ? "inet6" : "inet", *name = host->set[v6];
	char other[NAME_MAX_LENGTH + 4];

	snprintf(other, sizeof(other), "%s-n", name);
	fprintf(out, "create %s hash:ip family %s comment\n", name, family);
	fprintf(out, "create %s hash:ip family %s comment\nflush %s\n", other, family, other);
	for (size_t i = 0; i < want->n; i++)
		if (is_of(&want->entries[i], v6))
			put_set_entry(out, other, &want->entries[i]);
	fprintf(out, "swap %s %s\ndestroy %s\n", other, name, other);
}

static int fill_sets(const struct ipt_host *host, const struct snat_list *want, struct error *err)
{
	scoped_free char *bytes = NULL;
	struct text t;
	int r = text_open(&t, err);

	if (r)
		return r;
	for (int v6 = 0; v6 <= host->ipv6; v6++)
		put_whole_set(t.out, host, v6, want);
	bytes = text_close(&t);
	return bytes ? iptables_run_ipset_restore(HERE, bytes, err) : no_memory(err);
}

/* Those that a rule still looks into stay. */
static void destroy_sets(const struct ipt_host *host)
{
	char text[2 * NAME_MAX_LENGTH];
	struct error ignored = {0};

	for (int v6 = 0; v6 <= 1; v6++) {
		snprintf(text, sizeof(text), "destroy %s\n", host->set[v6]);
		iptables_run_ipset_restore(HERE, text, &ignored);
	}
}

/* One family of one backend, from what is there to what is wanted; NULL: nothing. */
static int change_chain(const struct ipt_host *host, enum iptables_backend backend, bool v6,
			const char *wanted, struct error *err)
{
	scoped_set struct iptables_set now = {0}, want = {0};
	scoped_free char *text = NULL;
	int r = look(host, backend, v6, &now, err);

	if (!r && wanted)
		r = iptables_text_parse(wanted, &want, err);
	if (!r)
		r = iptables_text_change(&now, &want, IPTABLES_NAT_LAST, &text, err);
	if (!r && text)
		r = iptables_run_restore(&host->programs[backend], v6, HERE, text, err);
	return r ? error_wrap(err, "%s", family_name(v6)) : 0;
}

static enum iptables_backend other_than(enum iptables_backend backend)
{
	return backend == IPTABLES_LEGACY ? IPTABLES_NFT : IPTABLES_LEGACY;
}

static int host_replace(void *state, const struct snat_rules *rules, const struct snat_list *want,
			struct error *err)
{
	struct ipt_host *host = state;
	int r = want->n > 0 ? make_ready(host, err) : 0;

	if (!r && want->n > 0 && host->has_ipset)
		r = fill_sets(host, want, err);
	for (int v6 = 0; !r && v6 <= host->ipv6; v6++) {
		scoped_free char *text = NULL;

		r = put_chain(host, v6, rules, want, &text, err);
		if (!r)
			r = change_chain(host, host->backend, v6, text, err);
		if (!r)
			r = change_chain(host, other_than(host->backend), v6, NULL, err);
	}
	if (!r && (want->n == 0 || !host->has_ipset))
		destroy_sets(host);
	return r;
}

static int change_sets(const struct ipt_host *host, const struct snat_list *gone,
		       const struct snat_list *come, struct error *err)
{
	char address[IP_ADDRESS_TEXT_MAX];
	scoped_free char *bytes = NULL;
	struct text t;
	int r = text_open(&t, err);

	if (r)
		return r;
	for (size_t i = 0; i < gone->n; i++)
		fprintf(t.out, "del %s %s\n",
			host->set[!ip_address_is_v4(&gone->entries[i].address)],
			ip_address_format(&gone->entries[i].address, address));
	for (size_t i = 0; i < come->n; i++)
		put_set_entry(t.out, host->set[!ip_address_is_v4(&come->entries[i].address)],
			      &come->entries[i]);
	bytes = text_close(&t);
	return bytes ? iptables_run_ipset_restore(HERE, bytes, err) : no_memory(err);
}

static int change_pod_rules(const struct ipt_host *host, bool v6, const struct snat_list *gone,
			    const struct snat_list *come, struct error *err)
{
	scoped_free char *bytes = NULL;
	struct text t;
	int r;

	if (!has_family(gone, v6) && !has_family(come, v6))
		return 0;
	r = text_open(&t, err);
	if (r)
		return r;
	fprintf(t.out, "*nat\n");
	for (size_t i = 0; i < gone->n; i++)
		if (is_of(&gone->entries[i], v6))
			put_pod_rule(t.out, "-D", host, &gone->entries[i], v6);
	for (size_t i = 0; i < come->n; i++)
		if (is_of(&come->entries[i], v6))
			put_pod_rule(t.out, "-A", host, &come->entries[i], v6);
	fprintf(t.out, "COMMIT\n");
	bytes = text_close(&t);
	return bytes ? iptables_run_restore(&host->programs[host->backend], v6, HERE, bytes, err)
		     : no_memory(err);
}

static int host_change(void *state, const struct snat_rules *rules, const struct snat_list *gone,
		       const struct snat_list *come, struct error *err)
{
	struct ipt_host *host = state;
	int r = make_ready(host, err);

	if (!r && host->has_ipset)
		return change_sets(host, gone, come, err);
	if (rules->who == SNAT_NOBODY)
		return r;
	for (int v6 = 0; !r && v6 <= host->ipv6; v6++)
		r = change_pod_rules(host, v6, gone, come, err);
	return r;
}

/* ---- comparing ------------------------------------------------------------------------------- */

static int verify_sets(const struct ipt_host *host, const struct snat_list *want, struct error *err)
{
	struct snat_list found = {0};
	bool any = false;
	int r = entries_of_sets(host, &found, &any, err);

	if (!r && snat_list_compare(&found, want, host->ipv6, err))
		r = error_wrap(err, "ipset");
	free(found.entries);
	return r;
}

static int host_verify(void *state, const struct snat_rules *rules, const struct snat_list *want,
		       struct error *err)
{
	struct ipt_host *host = state;
	int r = make_ready(host, err);

	for (int v6 = 0; !r && v6 <= host->ipv6; v6++) {
		scoped_set struct iptables_set now = {0}, wanted = {0};
		scoped_free char *text = NULL;

		r = put_chain(host, v6, rules, want, &text, err);
		if (!r)
			r = iptables_text_parse(text, &wanted, err);
		if (!r)
			r = look(host, host->backend, v6, &now, err);
		if (!r)
			r = iptables_text_compare(&now, &wanted, err);
		if (r)
			error_wrap(err, "iptables %s", family_name(v6));
	}
	return r || !host->has_ipset ? r : verify_sets(host, want, err);
}

/* ---- life ------------------------------------------------------------------------------------ */

static void host_close(void *state)
{
	struct ipt_host *host = state;

	scoped_close(&host->netns_fd);
	free(host);
}

static bool kernel_has_ipv6(void)
{
	scoped_fd int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	return fd >= 0 || errno != EAFNOSUPPORT;
}

static int host_open(const struct redirect_config *cfg, enum probe_snat_kind kind, void **ret,
		     struct error *err)
{
	struct ipt_host *host = calloc(1, sizeof(*host));
	int r;

	if (!host)
		return no_memory(err);
	host->backend = kind == PROBE_SNAT_IPTABLES_LEGACY ? IPTABLES_LEGACY : IPTABLES_NFT;
	host->ipv6 = kernel_has_ipv6();
	iptables_find_programs(IPTABLES_LEGACY, &host->programs[IPTABLES_LEGACY]);
	iptables_find_programs(IPTABLES_NFT, &host->programs[IPTABLES_NFT]);
	snprintf(host->chain, sizeof(host->chain), IPTABLES_CHAIN_PREFIX "PROBES_%08x",
		 cfg->instance);
	for (int v6 = 0; v6 <= 1; v6++)
		snprintf(host->set[v6], sizeof(host->set[v6]), "sockmesh-%08x-v%d", cfg->instance,
			 v6 ? 6 : 4);
	host->netns_fd = -1;
	r = netns_open("/proc/thread-self/ns/net", &host->netns_fd, err);
	if (r)
		host_close(host);
	else
		*ret = host;
	return r;
}

static int host_uninstall(const struct redirect_config *cfg, struct error *err)
{
	struct snat_list list = {0};
	bool any = false;
	void *state = NULL;
	int r = host_open(cfg, PROBE_SNAT_IPTABLES_NFT, &state, err);

	if (r || !state)
		return r;
	r = host_load(state, &list, &any, err);
	free(list.entries);
	list = (struct snat_list){0};
	if (!r && any)
		r = host_replace(state, &(struct snat_rules){0}, &list, err);
	host_close(state);
	return r;
}

const struct snat_backend snat_iptables = {
	.name = "iptables",
	.open = host_open,
	.close = host_close,
	.can_match_cgroup = host_can_match_cgroup,
	.load = host_load,
	.replace = host_replace,
	.change = host_change,
	.verify = host_verify,
	.uninstall = host_uninstall,
};
