/* SPDX-License-Identifier: Apache-2.0 */
/* The nftables engine against the kernel, in network namespaces of its own. */
#include "redirect_engine.h"

#include "error.h"
#include "netlink.h"
#include "netns.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* ---- a namespace, a plan, an engine ---------------------------------------------------------- */

static void *unshare_net(void *arg)
{
	int *fd = arg;

	*fd = unshare(CLONE_NEWNET) ? -1 : open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	return NULL;
}

static int run_command(void *arg, struct error *err)
{
	int status = system(arg); /* NOLINT(cert-env33-c) */

	(void)err;
	return status < 0 || !WIFEXITED(status) ? -1 : WEXITSTATUS(status);
}

/* In the namespace; the exit code. */
static int in_netns(int fd, const char *command)
{
	struct error err = {0};

	return netns_run(fd, run_command, (void *)(uintptr_t)command, &err);
}

/* In a process of its own; another thread may have held a lock of malloc() when that was made. */
static pid_t start_in_netns(int fd, const char *command)
{
	pid_t pid = fork();

	if (pid == 0) {
		if (!setns(fd, CLONE_NEWNET))
			execl("/bin/sh", "sh", "-c", command, (char *)NULL);
		_exit(127);
	}
	return pid;
}

static int namespace_new(void)
{
	pthread_t thread;
	int fd = -1;

	if (pthread_create(&thread, NULL, unshare_net, &fd))
		return -1;
	pthread_join(thread, NULL);
	if (fd >= 0 && in_netns(fd, "ip link set lo up")) {
		close(fd);
		return -1;
	}
	return fd;
}

static uint32_t uids[] = {1337, 1338};
static uint16_t ports[] = {15020, 15021, 15090};
static char *interfaces[] = {(char[]){"eth1"}, (char[]){"eth2"}};

static struct ip_prefix prefix(const char *text)
{
	struct ip_prefix p;
	struct error err = {0};

	if (ip_prefix_parse(text, &p, &err) < 0)
		abort();
	return p;
}

/* Everything at once; the lists are borrowed. */
static struct redirect_settings settings_of(bool tproxy, bool ipv6, struct ip_prefix prefixes[4])
{
	prefixes[0] = prefix("10.1.0.0/16");
	prefixes[1] = prefix("10.0.0.0/16"); /* its neighbour */
	prefixes[2] = prefix("10.0.3.0/24"); /* inside it */
	prefixes[3] = prefix("fd00:77::/32");
	return (struct redirect_settings){
		.outbound_port = 15001,
		.inbound_port = 15006,
		.dns_port = 15053,
		.dns_capture = true,
		.tunnel_port = 15008,
		.capture_ipv6 = ipv6,
		.tproxy = tproxy,
		.drop_invalid = true,
		.loopback4 = prefix("127.0.0.1/32"),
		.proxy_uids = {uids, COUNT(uids)},
		.proxy_gids = {uids, 1},
		.outbound_include_all = true,
		.inbound_include_all = true,
		.outbound_exclude_ports = {ports, 1},
		.inbound_exclude_ports = {ports, COUNT(ports)},
		.exclude_prefixes = {prefixes, 4},
		.exclude_interfaces = {interfaces, COUNT(interfaces)},
	};
}

struct fixture {
	struct redirect_config cfg;
	void *state;
	struct redirect_plan *plan;
	struct redirect_pod pod;
};

static int fixture_open(struct fixture *f, bool tproxy, bool ipv6)
{
	struct ip_prefix prefixes[4];
	struct redirect_settings settings = settings_of(tproxy, ipv6, prefixes);
	struct error err = {0};

	*f = (struct fixture){.cfg = {.instance = 0xabcd}};
	if (redirect_nftables_ops.open(&f->cfg, NULL, &f->state, &err)) {
		printf("# %s\n", err.text);
		return -1;
	}
	if (redirect_plan_build(&settings, &f->plan, &err))
		return -1;
	f->pod = (struct redirect_pod){
		.cookie = 1,
		.netns_fd = namespace_new(),
		.plan = f->plan,
		.pod_plan = f->plan,
	};
	return f->pod.netns_fd < 0 ? -1 : 0;
}

/* The same pod, in ambient: without addresses, so that nothing is made on the host. */
static int become_ambient(struct fixture *f)
{
	struct ip_prefix prefixes[4];
	struct redirect_settings settings = settings_of(false, true, prefixes);
	struct error err = {0};

	settings.ambient = true;
	redirect_plan_free(f->plan);
	f->plan = NULL;
	if (redirect_plan_build(&settings, &f->plan, &err))
		return -1;
	f->pod.plan = f->pod.pod_plan = f->plan;
	return 0;
}

static void fixture_close(struct fixture *f)
{
	redirect_plan_free(f->plan);
	redirect_nftables_ops.close(f->state);
	close(f->pod.netns_fd);
}

static enum redirect_presence presence(const struct fixture *f)
{
	enum redirect_presence found = REDIRECT_PARTIAL;
	struct error err = {0};

	if (redirect_nftables_ops.presence(NULL, 1, f->pod.netns_fd, &found, &err))
		printf("# %s\n", err.text);
	return found;
}

static int apply(const struct fixture *f)
{
	struct error err = {0};
	int r = redirect_nftables_ops.apply(f->state, &f->pod, &err);

	if (r)
		printf("# apply: %s (%d)\n", err.text, r);
	return r;
}

static int verify(const struct fixture *f, struct error *err)
{
	err->text[0] = '\0';
	err->code = 0;
	return redirect_nftables_ops.verify(f->state, &f->pod, err);
}

static int take_away(const struct fixture *f)
{
	struct error err = {0};
	int r = redirect_nftables_ops.remove(f->state, 1, f->pod.netns_fd, &err);

	if (r)
		printf("# remove: %s (%d)\n", err.text, r);
	return r;
}

/* ---- tests ----------------------------------------------------------------------------------- */

static enum test_result apply_verify_remove(bool tproxy, bool ipv6, bool beside)
{
	struct fixture f;
	struct error err;

	CHECK(!fixture_open(&f, tproxy, ipv6));
	f.pod.beside_ebpf = beside;
	CHECK_EQ(presence(&f), REDIRECT_ABSENT);
	for (int i = 0; i < 2; i++) {
		CHECK(!apply(&f));
		CHECK_EQ(presence(&f), REDIRECT_ACTIVE);
		if (verify(&f, &err))
			printf("# verify: %s\n", err.text);
		CHECK_EQ(err.code, 0);
		CHECK_EQ(in_netns(f.pod.netns_fd, "ip -6 address show dev lo | grep -q ' ::6/128'"),
			 !ipv6);
	}
	CHECK(redirect_nftables_ops.owns_passthrough(f.state, 1, f.pod.netns_fd) == ipv6);
	CHECK(redirect_nftables_ops.is_ours(&f.cfg, f.pod.netns_fd));
	for (int i = 0; i < 2; i++) {
		CHECK(!take_away(&f));
		CHECK_EQ(presence(&f), REDIRECT_ABSENT);
	}
	CHECK_EQ(in_netns(f.pod.netns_fd, "[ -z \"$(nft list ruleset)\" ]"), 0);
	CHECK(in_netns(f.pod.netns_fd, "ip -6 address show dev lo | grep -q ' ::6/128'"));
	CHECK(in_netns(f.pod.netns_fd, "ip rule | grep -q 'lookup 133'"));
	CHECK_EQ(verify(&f, &err), -ENODEV);
	fixture_close(&f);
	return TEST_OK;
}

TEST(a_pod_is_there_after_apply_as_planned_and_gone_after_remove)
{
	return apply_verify_remove(false, true, false);
}

TEST(the_same_without_ipv6)
{
	return apply_verify_remove(false, false, false);
}

TEST(the_same_with_tproxy)
{
	return apply_verify_remove(true, true, false);
}

TEST(the_same_beside_ebpf)
{
	return apply_verify_remove(false, true, true);
}

#define HAS_ROUTES                                                                                 \
	"ip rule | grep -q 'fwmark 0x111/0xfff lookup 100' && ip -6 route show table 100 | grep "  \
	"-q local"

TEST(an_ambient_pod_has_routes_and_a_note_of_them)
{
	struct fixture f;
	struct error err;

	CHECK(!fixture_open(&f, true, true));
	CHECK(!apply(&f)); /* TPROXY before */
	CHECK(!become_ambient(&f));
	CHECK_EQ(verify(&f, &err), -ENODEV);
	for (int i = 0; i < 2; i++) {
		CHECK(!apply(&f));
		if (verify(&f, &err))
			printf("# verify: %s\n", err.text);
		CHECK_EQ(err.code, 0);
		CHECK_EQ(in_netns(f.pod.netns_fd, HAS_ROUTES), 0);
		CHECK(in_netns(f.pod.netns_fd, "ip rule | grep -q 'lookup 133'"));
	}
	CHECK_EQ(in_netns(f.pod.netns_fd, "ip -6 rule del fwmark 0x111/0xfff lookup 100"), 0);
	CHECK_EQ(verify(&f, &err), -ENODEV);
	CHECK_HAS(err.text, "the IPv6 routing rule of mark 273 is missing");
	CHECK(!apply(&f));
	CHECK_EQ(in_netns(f.pod.netns_fd, "nft delete chain inet sockmesh ambient"), 0);
	CHECK_EQ(verify(&f, &err), -ENODEV);
	CHECK(!apply(&f));
	CHECK_EQ(verify(&f, &err), 0);
	CHECK(!take_away(&f));
	CHECK(in_netns(f.pod.netns_fd, HAS_ROUTES));
	CHECK_EQ(in_netns(f.pod.netns_fd, "[ -z \"$(nft list ruleset)\" ]"), 0);
	fixture_close(&f);
	return TEST_OK;
}

TEST(an_address_that_was_there_before_stays)
{
	struct fixture f;

	CHECK(!fixture_open(&f, false, true));
	CHECK_EQ(in_netns(f.pod.netns_fd, "ip address add ::6/128 dev lo nodad"), 0);
	CHECK(!apply(&f));
	CHECK(!apply(&f));
	CHECK(!redirect_nftables_ops.owns_passthrough(f.state, 1, f.pod.netns_fd));
	CHECK(!take_away(&f));
	CHECK_EQ(in_netns(f.pod.netns_fd, "ip -6 address show dev lo | grep -q ' ::6/128'"), 0);
	/* But not when an engine before this one had put it there. */
	f.pod.passthrough_is_ours = true;
	CHECK(!apply(&f));
	CHECK(redirect_nftables_ops.owns_passthrough(f.state, 1, f.pod.netns_fd));
	CHECK(!take_away(&f));
	CHECK(in_netns(f.pod.netns_fd, "ip -6 address show dev lo | grep -q ' ::6/128'"));
	fixture_close(&f);
	return TEST_OK;
}

static const struct {
	const char *command, *said; /* said: what verify finds */
} tampers[] = {
	{"nft flush ruleset", "table sockmesh is missing"},
	{"nft flush table inet sockmesh", "is missing"},
	{"nft delete table inet sockmesh", "table sockmesh is missing"},
	{"nft flush chain inet sockmesh nat-output", "rule established in chain nat-output is "
						     "missing"},
	{"nft delete rule inet sockmesh nat-output handle "
	 "$(nft -a list chain inet sockmesh nat-output | sed -n 's/.*out-dns-udp.*handle //p')",
	 "rule out-dns-udp in chain nat-output is missing"},
	{"nft delete rule inet sockmesh raw-output handle "
	 "$(nft -a list chain inet sockmesh raw-output | sed -n 's/.*dns-zone-captured.*handle "
	 "//p')",
	 "rule dns-zone-captured in chain raw-output is missing"},
	{"nft insert rule inet sockmesh nat-output accept",
	 "a rule in chain nat-output is not ours"},
	{"nft add rule inet sockmesh nat-output drop comment mine",
	 "rule mine in chain nat-output is not ours"},
	{"nft replace rule inet sockmesh nat-output handle "
	 "$(nft -a list chain inet sockmesh nat-output | sed -n 's/.*out-dns-udp.*handle //p') "
	 "udp dport 53 redirect to :5 comment out-dns-udp",
	 "rule out-dns-udp in chain nat-output is not as planned"},
	{"nft add chain inet sockmesh mine", "chain mine is not ours"},
	{"nft add chain inet sockmesh nat-output '{ policy drop; }'",
	 "policy of chain nat-output is not as planned"},
	{"nft add set inet sockmesh mine '{ type inet_service; }'", "sets or objects"},
	{"nft add counter inet sockmesh mine", "sets or objects"},
	{"nft add table inet sockmesh '{ flags dormant; }'", "flags of table sockmesh"},
	{"nft add table ip sockmesh", "second table"},
	{"nft add chain inet sockmesh draining", "only drains"},
	{"ip address del ::6/128 dev lo", "::6 on lo is missing"},
};

TEST(whatever_somebody_changes_is_named_and_healed_by_apply)
{
	struct fixture f;
	struct error err;

	CHECK(!fixture_open(&f, false, true));
	CHECK(!apply(&f));
	for (size_t i = 0; i < COUNT(tampers); i++) {
		CHECK_EQ(verify(&f, &err), 0);
		printf("# %s\n", tampers[i].command);
		CHECK_EQ(in_netns(f.pod.netns_fd, tampers[i].command), 0);
		CHECK_EQ(verify(&f, &err), -ENODEV);
		CHECK_HAS(err.text, tampers[i].said);
		CHECK(!apply(&f));
		if (verify(&f, &err))
			printf("# after apply: %s\n", err.text);
		CHECK_EQ(err.code, 0);
	}
	CHECK(!take_away(&f));
	CHECK_EQ(in_netns(f.pod.netns_fd, "[ -z \"$(nft list ruleset)\" ]"), 0);
	CHECK(in_netns(f.pod.netns_fd, "ip -6 address show dev lo | grep -q ' ::6/128'"));
	fixture_close(&f);
	return TEST_OK;
}

TEST(routes_of_tproxy_that_somebody_deletes_are_missed)
{
	struct fixture f;
	struct error err;

	CHECK(!fixture_open(&f, true, true));
	CHECK(!apply(&f));
	CHECK_EQ(verify(&f, &err), 0);
	CHECK_EQ(in_netns(f.pod.netns_fd, "ip rule del fwmark 1337 lookup 133"), 0);
	CHECK_EQ(verify(&f, &err), -ENODEV);
	CHECK(!apply(&f));
	CHECK_EQ(verify(&f, &err), 0);
	/* A plan without TPROXY needs none. */
	redirect_plan_free(f.plan);
	{
		struct ip_prefix prefixes[4];
		struct redirect_settings settings = settings_of(false, true, prefixes);

		CHECK(!redirect_plan_build(&settings, &f.plan, &err));
	}
	f.pod.plan = f.pod.pod_plan = f.plan;
	CHECK_EQ(verify(&f, &err), -ENODEV);
	CHECK(!apply(&f));
	CHECK_EQ(verify(&f, &err), 0);
	CHECK(in_netns(f.pod.netns_fd, "ip rule | grep -q 'lookup 133'"));
	CHECK(!take_away(&f));
	fixture_close(&f);
	return TEST_OK;
}

TEST(another_agents_pod_is_not_ours)
{
	struct fixture f;
	struct redirect_config other = {.instance = 0xbeef};
	struct error err = {0};

	CHECK(!fixture_open(&f, false, true));
	CHECK(!apply(&f));
	CHECK(!redirect_nftables_ops.is_ours(&other, f.pod.netns_fd));
	CHECK(!redirect_nftables_ops.uninstall(&other, NULL, 0, &err));
	CHECK_EQ(presence(&f), REDIRECT_ACTIVE);
	CHECK(!redirect_nftables_ops.uninstall(&other, &f.pod, 1, &err));
	CHECK_EQ(presence(&f), REDIRECT_ABSENT);
	fixture_close(&f);
	return TEST_OK;
}

/* What apply leaves when it is cut short after its first transaction. */
TEST(what_an_apply_that_was_cut_short_leaves_is_partial_and_can_be_removed)
{
	struct fixture f;

	CHECK(!fixture_open(&f, false, true));
	CHECK_EQ(in_netns(f.pod.netns_fd, "nft 'add table inet sockmesh; "
					  "add chain inet sockmesh passthrough' && "
					  "ip address add ::6/128 dev lo nodad"),
		 0);
	CHECK_EQ(presence(&f), REDIRECT_PARTIAL);
	CHECK(!take_away(&f));
	CHECK_EQ(presence(&f), REDIRECT_ABSENT);
	CHECK(in_netns(f.pod.netns_fd, "ip -6 address show dev lo | grep -q ' ::6/128'"));
	fixture_close(&f);
	return TEST_OK;
}

/* ---- draining -------------------------------------------------------------------------------- */

/* One captured connection over lo, held open by two processes. */
static const char connect_captured[] =
	"exec 2>/dev/null; ip address add 10.0.9.9/32 dev lo && "
	"python3 -c '\n"
	"import os, socket, time\n"
	"proxy = socket.socket(); proxy.bind((\"\", 15001)); proxy.listen()\n"
	"client = socket.create_connection((\"192.0.2.1\", 80), 5)\n"
	"server, _ = proxy.accept()\n"
	"assert server.getsockname()[1] == 15001\n"
	"open(\"%s\", \"w\").write(str(os.getpid()))\n"
	"def echo():\n"
	"    client.sendall(b\"x\"); server.settimeout(2); assert server.recv(1) == b\"x\"\n"
	"    server.sendall(b\"y\"); client.settimeout(2); assert client.recv(1) == b\"y\"\n"
	"end = time.time() + 20\n"
	"while os.path.exists(\"%s\") and time.time() < end:\n"
	"    echo(); time.sleep(0.01)\n"
	"client.close(); server.close()\n"
	"' && rm -f %s.failed || touch %s.failed";

/*
 * One of ztunnel's, to the app with a client's address: no NAT is in it, only marks. What comes
 * back is looked at every time, until the file is removed.
 */
static const char connect_transparent[] =
	"exec 2>/dev/null; ip address add 10.0.9.9/32 dev lo && "
	"python3 -c '\n"
	"import os, socket, time\n"
	"app = socket.socket(); app.bind((\"10.0.9.9\", 8080)); app.listen()\n"
	"client = socket.socket(); client.setsockopt(socket.SOL_SOCKET, 36, 0x539)\n"
	"client.setsockopt(socket.SOL_IP, 19, 1); client.bind((\"192.0.2.7\", 0))\n"
	"client.settimeout(5); client.connect((\"10.0.9.9\", 8080))\n"
	"server, peer = app.accept()\n"
	"assert peer[0] == \"192.0.2.7\"\n"
	"open(\"%s\", \"w\").write(str(os.getpid()))\n"
	"def echo():\n"
	"    client.sendall(b\"x\"); server.settimeout(2); assert server.recv(1) == b\"x\"\n"
	"    server.sendall(b\"y\"); client.settimeout(2); assert client.recv(1) == b\"y\"\n"
	"end = time.time() + 20\n"
	"while os.path.exists(\"%s\") and time.time() < end:\n"
	"    echo(); time.sleep(0.01)\n"
	"client.close(); server.close()\n"
	"' && rm -f %s.failed || touch %s.failed";

static bool exists_within(const char *path, bool wanted, int ms)
{
	for (int i = 0; i < ms / 10; i++) {
		struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};

		if ((access(path, F_OK) == 0) == wanted)
			return true;
		nanosleep(&pause, NULL);
	}
	return false;
}

TEST(a_retired_pod_drains_until_its_last_captured_connection_has_ended)
{
	struct fixture f;
	struct error err = {0};
	char path[64], command[2048];
	bool done = true;
	pid_t child;

	CHECK(!fixture_open(&f, false, true));
	/* A way out, so that what is dialled has a route before it is redirected to lo. */
	CHECK_EQ(in_netns(f.pod.netns_fd, "ip link add d0 type veth peer name d1 && ip link set d0 "
					  "up && ip link set d1 up && "
					  "ip address add 198.51.100.1/24 dev d0 && "
					  "ip route add default dev d0"),
		 0);
	CHECK(!apply(&f));
	snprintf(path, sizeof(path), "/tmp/nftables_test.%d", (int)getpid());
	snprintf(command, sizeof(command), connect_captured, path, path, path, path);
	child = start_in_netns(f.pod.netns_fd, command);
	CHECK(exists_within(path, true, 5000));
	for (int i = 0; i < 3; i++) {
		f.pod.plan = f.pod.pod_plan = i ? NULL : f.plan;
		CHECK_EQ(redirect_nftables_ops.retire(f.state, &f.pod, &done, &err), 0);
		CHECK(!done);
		CHECK_EQ(presence(&f), REDIRECT_DRAINING);
	}
	/* Zones stay, nothing new is captured, and the connection lives on. */
	CHECK_EQ(in_netns(f.pod.netns_fd, "nft list chain inet sockmesh raw-output | grep -q zone"),
		 0);
	CHECK_EQ(in_netns(f.pod.netns_fd, "[ $(nft list table inet sockmesh | grep -c redirect) = "
					  "1 ]"),
		 0);
	CHECK_EQ(in_netns(f.pod.netns_fd, "sleep 0.1"), 0); /* ten more echoes */
	unlink(path);
	waitpid(child, NULL, 0);
	strncat(path, ".failed", sizeof(path) - strlen(path) - 1);
	CHECK(access(path, F_OK) != 0);
	/* TIME_WAIT of conntrack is ended by hand. */
	CHECK_EQ(redirect_nftables_ops.retire(f.state, &f.pod, &done, &err), 0);
	CHECK(!done);
	in_netns(f.pod.netns_fd, "sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_time_wait=1");
	f.pod.plan = f.pod.pod_plan = f.plan;
	CHECK(!apply(&f)); /* moved back in the middle */
	CHECK_EQ(presence(&f), REDIRECT_ACTIVE);
	CHECK_EQ(verify(&f, &err), 0);
	CHECK(!take_away(&f));
	CHECK_EQ(redirect_nftables_ops.retire(f.state, &f.pod, &done, &err), 0);
	CHECK(done);
	fixture_close(&f);
	return TEST_OK;
}

TEST(a_retired_ambient_pod_drains_until_ztunnels_connections_to_the_app_have_ended)
{
	struct fixture f;
	struct error err = {0};
	char path[64], command[2048];
	bool done = true;
	pid_t child;

	CHECK(!fixture_open(&f, false, true) && !become_ambient(&f));
	CHECK_EQ(in_netns(f.pod.netns_fd, "ip link add d0 type veth peer name d1 && ip link set d0 "
					  "up && ip link set d1 up && "
					  "ip address add 198.51.100.1/24 dev d0 && "
					  "ip route add default dev d0"),
		 0);
	CHECK(!apply(&f));
	snprintf(path, sizeof(path), "/tmp/nftables_ambient_test.%d", (int)getpid());
	snprintf(command, sizeof(command), connect_transparent, path, path, path, path);
	child = start_in_netns(f.pod.netns_fd, command);
	CHECK(exists_within(path, true, 5000));
	for (int i = 0; i < 3; i++) {
		f.pod.plan = f.pod.pod_plan = i ? NULL : f.plan;
		CHECK_EQ(redirect_nftables_ops.retire(f.state, &f.pod, &done, &err), 0);
		CHECK(!done);
		CHECK_EQ(presence(&f), REDIRECT_DRAINING);
	}
	/* Nothing new is waited for. */
	CHECK(in_netns(f.pod.netns_fd, "nft list chain inet sockmesh mangle-prerouting | "
				       "grep -q 'ct mark set'"));
	CHECK_EQ(in_netns(f.pod.netns_fd, HAS_ROUTES), 0);
	CHECK_EQ(in_netns(f.pod.netns_fd, "sleep 0.1"), 0);
	unlink(path);
	waitpid(child, NULL, 0);
	strncat(path, ".failed", sizeof(path) - strlen(path) - 1);
	CHECK(access(path, F_OK) != 0);
	f.pod.plan = f.pod.pod_plan = f.plan;
	CHECK(!apply(&f)); /* moved back in the middle */
	CHECK_EQ(verify(&f, &err), 0);
	CHECK(!take_away(&f));
	CHECK(in_netns(f.pod.netns_fd, HAS_ROUTES));
	fixture_close(&f);
	return TEST_OK;
}

/* The next engine needs them as well, unless the pod is not in ambient any more. */
TEST(a_retired_ambient_pod_leaves_its_routes_to_the_next_engine)
{
	struct fixture f;
	struct error err = {0};
	struct redirect_plan *sidecar;
	bool done = false;

	for (int again = 0; again < 2; again++) {
		CHECK(!fixture_open(&f, false, true));
		sidecar = f.plan;
		f.plan = NULL;
		CHECK(!become_ambient(&f));
		CHECK(!apply(&f));
		if (again)
			f.pod.plan = f.pod.pod_plan = sidecar;
		CHECK_EQ(redirect_nftables_ops.retire(f.state, &f.pod, &done, &err), 0);
		CHECK(done);
		CHECK_EQ(in_netns(f.pod.netns_fd, HAS_ROUTES) == 0, !again);
		redirect_plan_free(sidecar);
		fixture_close(&f);
	}
	return TEST_OK;
}

TEST(a_pod_that_leaves_has_nothing_left_in_the_end)
{
	struct fixture f;
	struct error err = {0};
	bool done = false;

	CHECK(!fixture_open(&f, false, true) && !become_ambient(&f));
	CHECK(!apply(&f));
	f.pod.leaves = true;
	CHECK_EQ(redirect_nftables_ops.retire(f.state, &f.pod, &done, &err), 0);
	CHECK(done);
	CHECK_EQ(presence(&f), REDIRECT_ABSENT);
	CHECK(in_netns(f.pod.netns_fd, HAS_ROUTES));
	CHECK(in_netns(f.pod.netns_fd, "ip -6 address show dev lo | grep -q ' ::6/128'"));
	fixture_close(&f);
	return TEST_OK;
}

TEST(a_retired_pod_without_captured_connections_is_done_at_once)
{
	struct fixture f;
	struct error err = {0};
	bool done = false;

	CHECK(!fixture_open(&f, true, true));
	CHECK(!apply(&f));
	CHECK_EQ(redirect_nftables_ops.retire(f.state, &f.pod, &done, &err), 0);
	CHECK(done);
	CHECK_EQ(presence(&f), REDIRECT_ABSENT);
	/* The next engine's. */
	CHECK_EQ(in_netns(f.pod.netns_fd, "ip -6 address show dev lo | grep -q ' ::6/128'"), 0);
	CHECK_EQ(in_netns(f.pod.netns_fd, "ip rule | grep -q 'lookup 133'"), 0);
	fixture_close(&f);
	return TEST_OK;
}

TEST(counters_are_of_connections_by_rule)
{
	struct fixture f;
	json_t *counters, *verdicts;

	CHECK(!fixture_open(&f, false, true));
	CHECK(!redirect_nftables_ops.pod_counters(f.state, 1, f.pod.netns_fd));
	CHECK(!apply(&f));
	/* To a port without a listener, from an app: excluded, then to its own pod. */
	in_netns(f.pod.netns_fd, "exec 2>/dev/null; : </dev/tcp/127.0.0.1/15020");
	in_netns(f.pod.netns_fd, "bash -c ': </dev/tcp/127.0.0.1/15020' 2>/dev/null");
	in_netns(f.pod.netns_fd, "bash -c ': </dev/tcp/127.0.0.1/99' 2>/dev/null");
	counters = redirect_nftables_ops.pod_counters(f.state, 1, f.pod.netns_fd);
	CHECK(counters);
	verdicts = json_object_get(counters, "verdicts");
	CHECK_EQ(json_integer_value(json_object_get(verdicts, "out-port-excluded")), 1);
	CHECK_EQ(json_integer_value(json_object_get(verdicts, "out-app-to-self-uid")), 1);
	CHECK(json_is_object(json_object_get(counters, "events")));
	CHECK(!json_object_get(verdicts, "established"));
	json_decref(counters);
	fixture_close(&f);
	return TEST_OK;
}
