/* SPDX-License-Identifier: Apache-2.0 */
/* The probe of the nftables and iptables engines, on the kernel and programs that are here. */
#include "netfilter_probe.h"

#include "error.h"
#include "test.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static void probe_free(struct netfilter_probe **probe)
{
	netfilter_probe_free(*probe);
}
#define scoped_probe __attribute__((cleanup(probe_free)))

static const struct probe_facility *facility(const struct netfilter_probe *probe, const char *name)
{
	for (size_t i = 0; i < probe->n_facilities; i++)
		if (strcmp(probe->facilities[i].name, name) == 0)
			return &probe->facilities[i];
	return NULL;
}

static bool all_required(const struct netfilter_probe *probe, const char *engine)
{
	bool all = true;

	for (size_t i = 0; i < probe->n_facilities; i++)
		if (strcmp(probe->facilities[i].engine, engine) == 0)
			all &= probe->facilities[i].found || !probe->facilities[i].required;
	return all;
}

/* Does this shell command succeed in a namespace of its own? */
static bool works(const char *command)
{
	char line[512];

	snprintf(line, sizeof(line), "unshare -n sh -c '%s' >/dev/null 2>&1", command);
	return system(line) == 0; /* NOLINT(cert-env33-c): constant text */
}

TEST(what_is_found_is_what_other_programs_can_do)
{
	static const struct {
		const char *name, *command;
	} rows[] = {
		{"nf_tables", "nft add table inet a"},
		{"nft inet nat",
		 "nft \"add table inet a; add chain inet a b { type nat hook output "
		 "priority -100; }\""},
		{"nft redirect",
		 "nft \"add table ip a; add chain ip a b { type nat hook output priority -100; }; "
		 "add rule ip a b tcp dport 1 redirect to :2\""},
		{"nft tproxy",
		 "nft \"add table ip a; add chain ip a b { type filter hook prerouting "
		 "priority -150; }; add rule ip a b tcp dport 1 tproxy to :2\""},
		{"nft conntrack zones",
		 "nft \"add table inet a; add chain inet a b { type filter hook output priority "
		 "-300; }; add rule inet a b ct zone set 1\""},
		{"iptables nft", "iptables-nft -t nat -N A && ip6tables-nft -t nat -N A"},
		{"iptables legacy", "iptables-legacy -t nat -N A && ip6tables-legacy -t nat -N A"},
	};
	scoped_probe struct netfilter_probe *probe = NULL;
	struct error err = {0};

	if (geteuid() != 0)
		return TEST_SKIP;
	CHECK_EQ(netfilter_probe_run("auto", &probe, &err), 0);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		const struct probe_facility *f = facility(probe, rows[i].name);

		CHECK(f);
		printf("# %s: %s %s\n", f->name, f->found ? "found" : "missing", f->detail);
		CHECK_EQ(f->found, works(rows[i].command));
	}
	return TEST_OK;
}

TEST(every_facility_says_how_and_what_follows)
{
	scoped_probe struct netfilter_probe *probe = NULL;
	struct error err = {0};

	if (geteuid() != 0)
		return TEST_SKIP;
	CHECK_EQ(netfilter_probe_run("auto", &probe, &err), 0);
	for (size_t i = 0; i < probe->n_facilities; i++) {
		const struct probe_facility *f = &probe->facilities[i];

		CHECK(*f->name && *f->how && *f->without);
		CHECK(strcmp(f->engine, "nftables") == 0 || strcmp(f->engine, "iptables") == 0);
		CHECK(f->found || *f->detail);
		CHECK(facility(probe, f->name) == f);
	}
	CHECK_EQ(probe->nftables, all_required(probe, "nftables"));
	CHECK_EQ(probe->iptables, all_required(probe, "iptables"));
	CHECK(*probe->nftables_summary && *probe->iptables_summary);
	return TEST_OK;
}

TEST(our_own_namespace_stays_as_it_is)
{
	scoped_probe struct netfilter_probe *probe = NULL;
	struct stat before, after;
	struct error err = {0};

	if (geteuid() != 0)
		return TEST_SKIP;
	CHECK_EQ(stat("/proc/thread-self/ns/net", &before), 0);
	CHECK_EQ(netfilter_probe_run("auto", &probe, &err), 0);
	CHECK_EQ(stat("/proc/thread-self/ns/net", &after), 0);
	CHECK_EQ(before.st_ino, after.st_ino);
	CHECK(system("nft list tables 2>/dev/null | grep -q sockmesh_probe") != 0);
	CHECK(system("{ iptables-nft-save; iptables-legacy-save; } 2>/dev/null |"
		     " grep -qw SOCKMESH_PROBE") != 0);
	return TEST_OK;
}

TEST(without_programs_only_iptables_is_missing)
{
	scoped_probe struct netfilter_probe *probe = NULL;
	struct error err = {0};
	char *path = strdup(getenv("PATH") ?: "");

	if (geteuid() != 0 || !path) {
		free(path);
		return TEST_SKIP;
	}
	setenv("PATH", "/nonexistent", 1);
	CHECK_EQ(netfilter_probe_run("legacy", &probe, &err), 0);
	setenv("PATH", path, 1);
	free(path);
	CHECK(!probe->iptables);
	CHECK_HAS(probe->iptables_summary, "cannot run without iptables legacy, iptables nat");
	CHECK_HAS(facility(probe, "iptables legacy")->detail, "not installed");
	CHECK(facility(probe, "iptables legacy")->required);
	CHECK(!facility(probe, "iptables nft")->required);
	CHECK_EQ(probe->nftables, all_required(probe, "nftables"));
	CHECK_EQ(facility(probe, "nf_tables")->found, works("nft add table inet a"));
	return TEST_OK;
}
