/* SPDX-License-Identifier: Apache-2.0 */
/* The host's side of kubelet's probes: who gets the source that stands for kubelet, and who not. */
#include "probe_snat.h"

#include "cgroup.h"
#include "error.h"
#include "event_loop.h"
#include "netns.h"
#include "redirect.h"
#include "scoped.h"
#include "test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

enum { PORT = 8080, COOKIE = 4711, OTHER_COOKIE = 4712, TIMEOUT_S = 5, OTHER_UID = 65534 };

#define PROBE_V4 "169.254.7.127"
#define PROBE_V6 "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"

/* ---- a node and a pod ------------------------------------------------------------------------ */

/* This process is moved to a namespace that is the node's, and back at the end. */
struct node {
	int original, pod;
	char cgroup[PATH_MAX]; /* that stands for kubelet's; "" where there is no cgroup2 */
	struct redirect_config cfg;
	struct redirect_plan *plan;
	struct ip_address addresses[2];
	struct redirect_pod as_pod;
};

static int run_command(void *arg, struct error *err)
{
	int status = system(arg); /* NOLINT(cert-env33-c) */

	(void)err;
	return status < 0 || !WIFEXITED(status) ? -1 : WEXITSTATUS(status);
}

static int sh(const char *command)
{
	return run_command((void *)(uintptr_t)command, NULL);
}

static int in_pod(const struct node *n, const char *command)
{
	struct error err = {0};

	return netns_run(n->pod, run_command, (void *)(uintptr_t)command, &err);
}

static struct redirect_plan *plan_of(bool ambient, bool inbound)
{
	struct redirect_settings s = {
		.ambient = ambient,
		.outbound_port = 15001,
		.inbound_port = 15006,
		.capture_ipv6 = true,
		.outbound_include_all = true,
		.inbound_include_all = inbound,
		.loopback4 = {{{[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1}}, 128},
	};
	struct redirect_plan *plan = NULL;
	struct error err = {0};

	if (redirect_plan_build(&s, &plan, &err))
		abort();
	return plan;
}

static struct ip_address address(const char *text)
{
	struct ip_address a;
	struct error err = {0};

	if (ip_address_parse(text, &a, &err))
		abort();
	return a;
}

static void make_cgroup(struct node *n)
{
	struct error err = {0};
	char root[PATH_MAX];

	n->cgroup[0] = '\0';
	if (cgroup2_find(NULL, root, sizeof(root), &err) ||
	    snprintf(n->cgroup, sizeof(n->cgroup), "%s/sockmesh-snat-test-%d", root, getpid()) >=
		    (int)sizeof(n->cgroup) ||
	    mkdir(n->cgroup, 0755) < 0)
		n->cgroup[0] = '\0';
}

static int wire(int pod_fd)
{
	char command[512];

	snprintf(command, sizeof(command),
		 "ip link set lo up && "
		 "ip link add veth0 type veth peer name eth0 netns /proc/%d/fd/%d && "
		 "ip address add 10.77.0.1/24 dev veth0 && "
		 "ip address add fd77::1/64 dev veth0 nodad && ip link set veth0 up",
		 getpid(), pod_fd);
	return sh(command);
}

static int node_open(struct node *n)
{
	struct error err = {0};

	*n = (struct node){.original = -1, .pod = -1};
	n->original = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	if (n->original < 0 || netns_new(&n->pod, &err) || unshare(CLONE_NEWNET) < 0)
		return -1;
	if (wire(n->pod))
		return -1;
	if (in_pod(n, "ip link set lo up && ip address add 10.77.0.5/24 dev eth0 && "
		      "ip address add fd77::5/64 dev eth0 nodad && ip link set eth0 up && "
		      "ip route add default via 10.77.0.1 && ip -6 route add default via fd77::1"))
		return -1;
	make_cgroup(n);
	n->plan = plan_of(true, true);
	n->addresses[0] = address("10.77.0.5");
	n->addresses[1] = address("fd77::5");
	n->cfg = (struct redirect_config){.instance = 0xabcd0000u | (uint16_t)getpid()};
	n->as_pod = (struct redirect_pod){.cookie = COOKIE,
					  .netns_fd = n->pod,
					  .plan = n->plan,
					  .pod_plan = n->plan,
					  .addresses = n->addresses,
					  .n_addresses = 2};
	return 0;
}

static void node_close(struct node *n)
{
	if (n->original >= 0 && setns(n->original, CLONE_NEWNET) < 0)
		abort();
	scoped_close(&n->original);
	scoped_close(&n->pod);
	if (*n->cgroup)
		rmdir(n->cgroup);
	redirect_plan_free(n->plan);
}

/* ---- connections ----------------------------------------------------------------------------- */

struct listener {
	bool v6;
	int fd;
};

static int listen_inside(void *arg, struct error *err)
{
	struct listener *l = arg;
	struct sockaddr_in6 a6 = {.sin6_family = AF_INET6, .sin6_port = htons(PORT)};
	struct sockaddr_in a4 = {.sin_family = AF_INET, .sin_port = htons(PORT)};
	struct timeval timeout = {.tv_sec = TIMEOUT_S};
	int on = 1;

	l->fd = socket(l->v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (l->fd < 0 || setsockopt(l->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
	    (l->v6 && setsockopt(l->fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on)) < 0) ||
	    setsockopt(l->fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)) < 0 ||
	    bind(l->fd, l->v6 ? (void *)&a6 : (void *)&a4, l->v6 ? sizeof(a6) : sizeof(a4)) < 0 ||
	    listen(l->fd, 8) < 0)
		return error_set(err, errno, "listen in the pod");
	return 0;
}

/* The client: in a cgroup, as a user. Exit status 0: connected. */
static void client(const char *cgroup, uid_t uid, bool v6)
{
	struct sockaddr_in6 a6 = {.sin6_family = AF_INET6, .sin6_port = htons(PORT)};
	struct sockaddr_in a4 = {.sin_family = AF_INET, .sin_port = htons(PORT)};
	struct timeval timeout = {.tv_sec = TIMEOUT_S};
	char path[PATH_MAX + 16], byte;
	int fd;

	if (*cgroup) {
		snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup);
		fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd < 0 || write(fd, "0", 1) != 1)
			_exit(2);
	}
	if (setuid(uid) < 0)
		_exit(3);
	inet_pton(AF_INET, "10.77.0.5", &a4.sin_addr);
	inet_pton(AF_INET6, "fd77::5", &a6.sin6_addr);
	fd = socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)) < 0 ||
	    connect(fd, v6 ? (void *)&a6 : (void *)&a4, v6 ? sizeof(a6) : sizeof(a4)) < 0)
		_exit(4);
	_exit(read(fd, &byte, 1) == 0 ? 0 : 5); /* until the other side has looked */
}

/* From whom the pod sees a connection of such a process come; "" when none came. */
static const char *seen_from(const struct node *n, const char *cgroup, uid_t uid, bool v6)
{
	static char text[INET6_ADDRSTRLEN];
	struct listener l = {.v6 = v6, .fd = -1};
	struct sockaddr_storage peer;
	socklen_t size = sizeof(peer);
	struct error err = {0};
	int fd = -1, status = -1;
	pid_t pid;

	text[0] = '\0';
	if (netns_run(n->pod, listen_inside, &l, &err)) {
		printf("# %s\n", err.text);
		return text;
	}
	pid = fork();
	if (pid == 0)
		client(cgroup, uid, v6);
	fd = accept(l.fd, (void *)&peer, &size);
	if (fd >= 0)
		inet_ntop(peer.ss_family,
			  v6 ? (void *)&((struct sockaddr_in6 *)&peer)->sin6_addr
			     : (void *)&((struct sockaddr_in *)&peer)->sin_addr,
			  text, sizeof(text));
	scoped_close(&fd);
	close(l.fd);
	waitpid(pid, &status, 0);
	if (status)
		text[0] = '\0';
	return text;
}

/* ---- what each way is to do ------------------------------------------------------------------ */

static struct probe_snat *open_snat(const struct node *n, enum probe_snat_kind kind,
				    struct event_loop *loop)
{
	struct probe_snat *snat = NULL;
	struct error err = {0};

	if (probe_snat_open(kind, &n->cfg, loop, &snat, &err))
		printf("# %s\n", err.text);
	return snat;
}

static bool worked(int r, const struct error *err)
{
	if (r)
		printf("# %s (%d)\n", err->text, r);
	return r == 0;
}

/* No table, chain or set of ours. */
static bool nothing_is_left(void)
{
	return sh("test -z \"$(nft list tables | grep sockmesh)\" && "
		  "! iptables-nft-save 2>/dev/null | grep -q SOCKMESH && "
		  "! iptables-legacy-save | grep -q SOCKMESH && "
		  "! ip6tables-legacy-save | grep -q SOCKMESH && "
		  "{ ! command -v ipset >/dev/null || test -z \"$(ipset list -n)\"; }") == 0;
}

static enum test_result by_cgroup(enum probe_snat_kind kind)
{
	struct error err = {0};
	struct probe_snat *snat;
	struct node n;

	CHECK(!node_open(&n));
	if (!*n.cgroup) {
		node_close(&n);
		return TEST_SKIP;
	}
	n.cfg.kubelet_cgroup = n.cgroup;
	snat = open_snat(&n, kind, NULL);
	CHECK(snat && nothing_is_left());
	CHECK(worked(probe_snat_pod(snat, &n.as_pod, &err), &err));
	CHECK(worked(probe_snat_verify(snat, &n.as_pod, &err), &err));
	CHECK_STR(seen_from(&n, n.cgroup, 0, false), PROBE_V4);
	CHECK_STR(seen_from(&n, n.cgroup, 0, true), PROBE_V6);
	/* Nobody else of the node, not even root, and whoever kubelet's user is, is kubelet. */
	CHECK_STR(seen_from(&n, "", 0, false), "10.77.0.1");
	CHECK_STR(seen_from(&n, "", 0, true), "fd77::1");
	CHECK_STR(seen_from(&n, n.cgroup, OTHER_UID, false), PROBE_V4);
	CHECK(worked(probe_snat_drop(snat, COOKIE, &err), &err));
	CHECK_STR(seen_from(&n, n.cgroup, 0, false), "10.77.0.1");
	CHECK(nothing_is_left());
	probe_snat_close(snat);
	node_close(&n);
	return TEST_OK;
}

static enum test_result by_user(enum probe_snat_kind kind)
{
	struct error err = {0};
	struct probe_snat *snat;
	struct node n;

	CHECK(!node_open(&n));
	snat = open_snat(&n, kind, NULL);
	CHECK(snat);
	CHECK(worked(probe_snat_pod(snat, &n.as_pod, &err), &err));
	CHECK_STR(seen_from(&n, "", 0, false), PROBE_V4);
	CHECK_STR(seen_from(&n, "", 0, true), PROBE_V6);
	CHECK_STR(seen_from(&n, "", OTHER_UID, false), "10.77.0.1");
	CHECK_STR(seen_from(&n, "", OTHER_UID, true), "fd77::1");
	CHECK(worked(probe_snat_verify(snat, &n.as_pod, &err), &err));
	CHECK(worked(probe_snat_drop(snat, COOKIE, &err), &err));
	CHECK(nothing_is_left());
	probe_snat_close(snat);
	node_close(&n);
	return TEST_OK;
}

/* The next agent takes another engine, and no pod of this one's is left. */
static enum test_result left_for_another(enum probe_snat_kind kind, enum redirect_mode next)
{
	struct event_loop *loop = NULL;
	struct redirect *redirect = NULL;
	uint64_t *cookies = NULL;
	struct error err = {0};
	struct probe_snat *snat;
	struct node n;
	size_t n_cookies = 1;

	CHECK(!node_open(&n) && !event_loop_new(&loop, &err));
	snat = open_snat(&n, kind, NULL);
	CHECK(snat);
	CHECK(worked(probe_snat_pod(snat, &n.as_pod, &err), &err));
	probe_snat_close(snat);
	CHECK(!nothing_is_left());
	n.cfg.mode = next;
	n.cfg.iptables = "auto";
	n.cfg.bpffs_dir = "/nonexistent/sockmesh";
	CHECK(worked(redirect_open(&n.cfg, loop, &redirect, &err), &err));
	CHECK(worked(redirect_recovered(redirect, &cookies, &n_cookies, &err), &err));
	CHECK_EQ(n_cookies, 0);
	CHECK(nothing_is_left());
	free(cookies);
	redirect_close(redirect);
	event_loop_free(loop);
	node_close(&n);
	return TEST_OK;
}

/* A cgroup that is made again, as by a service that starts again, has another id. */
static enum test_result cgroup_made_again(enum probe_snat_kind kind)
{
	struct error err = {0};
	struct probe_snat *snat;
	struct node n;

	CHECK(!node_open(&n));
	if (!*n.cgroup) {
		node_close(&n);
		return TEST_SKIP;
	}
	n.cfg.kubelet_cgroup = n.cgroup;
	CHECK(!rmdir(n.cgroup));
	snat = open_snat(&n, kind, NULL);
	CHECK(snat && worked(probe_snat_pod(snat, &n.as_pod, &err), &err));
	CHECK_STR(seen_from(&n, "", 0, false), "10.77.0.1");
	CHECK(!mkdir(n.cgroup, 0755));
	CHECK_EQ(probe_snat_verify(snat, &n.as_pod, &err), -ENODEV);
	CHECK(worked(probe_snat_pod(snat, &n.as_pod, &err), &err));
	CHECK_STR(seen_from(&n, n.cgroup, 0, false), PROBE_V4);
	CHECK(worked(probe_snat_drop(snat, COOKIE, &err), &err));
	probe_snat_close(snat);
	node_close(&n);
	return TEST_OK;
}

static enum test_result tampered(enum probe_snat_kind kind, const char *const commands[],
				 size_t n_commands)
{
	struct error err = {0};
	struct node n;

	CHECK(!node_open(&n));
	for (size_t i = 0; i < n_commands; i++) {
		struct probe_snat *snat = open_snat(&n, kind, NULL);

		CHECK(snat && worked(probe_snat_pod(snat, &n.as_pod, &err), &err));
		CHECK_EQ(sh(commands[i]), 0);
		if (probe_snat_verify(snat, &n.as_pod, &err) != -ENODEV)
			printf("# not seen: %s\n", commands[i]);
		CHECK_EQ(err.code, ENODEV);
		CHECK(worked(probe_snat_pod(snat, &n.as_pod, &err), &err));
		CHECK_STR(seen_from(&n, "", 0, true), PROBE_V6);
		CHECK(worked(probe_snat_drop(snat, COOKIE, &err), &err));
		CHECK(nothing_is_left());
		err.code = 0;
		probe_snat_close(snat);
	}
	node_close(&n);
	return TEST_OK;
}

static int visit(void *arg, uint64_t cookie, redirect_visit_fn fn, void *fn_arg, struct error *err)
{
	const struct node *n = arg;

	return cookie == COOKIE ? fn(&n->as_pod, fn_arg, err) : error_set(err, ENOENT, "no pod");
}

static void stop_loop(void *arg)
{
	event_loop_stop(arg);
}

/* An agent that starts keeps what its pods have, and forgets pods that ended meanwhile. */
static enum test_result taken_over(enum probe_snat_kind kind)
{
	struct ip_address gone = address("10.77.0.9");
	struct redirect_pod other;
	struct event_loop *loop = NULL;
	struct probe_snat *snat;
	struct error err = {0};
	struct node n;

	CHECK(!node_open(&n) && !event_loop_new(&loop, &err));
	other = n.as_pod;
	other.cookie = OTHER_COOKIE;
	other.addresses = &gone;
	other.n_addresses = 1;
	n.cfg.visit_pod = visit;
	n.cfg.pods_arg = &n;
	snat = open_snat(&n, kind, loop);
	CHECK(snat && worked(probe_snat_pod(snat, &n.as_pod, &err), &err));
	CHECK(worked(probe_snat_pod(snat, &other, &err), &err));
	probe_snat_close(snat);
	CHECK_STR(seen_from(&n, "", 0, false), PROBE_V4);

	snat = open_snat(&n, kind, loop);
	CHECK(snat);
	CHECK(!event_loop_add_timer(loop, 50, 0, stop_loop, loop, NULL, &err));
	CHECK(!event_loop_run(loop, &err));
	CHECK(worked(probe_snat_verify(snat, &n.as_pod, &err), &err));
	CHECK_EQ(probe_snat_verify(snat, &other, &err), -ENODEV);
	CHECK_STR(seen_from(&n, "", 0, true), PROBE_V6);
	CHECK(worked(probe_snat_drop(snat, COOKIE, &err), &err));
	CHECK(nothing_is_left());
	probe_snat_close(snat);
	event_loop_free(loop);
	node_close(&n);
	return TEST_OK;
}

static enum test_result many_and_uninstalled(enum probe_snat_kind kind)
{
	/* More than one message holds; programs take their time. */
	const int pods = kind == PROBE_SNAT_NFTABLES ? 300 : 20;
	struct error err = {0};
	struct probe_snat *snat;
	struct node n;

	CHECK(!node_open(&n));
	snat = open_snat(&n, kind, NULL);
	CHECK(snat);
	for (int i = 0; i < pods; i++) {
		struct redirect_pod pod = n.as_pod;
		struct ip_address both[2];
		char text[INET6_ADDRSTRLEN];

		snprintf(text, sizeof(text), "10.78.%d.%d", i / 200, i % 200 + 1);
		both[0] = address(text);
		snprintf(text, sizeof(text), "fd78::%x", i + 1);
		both[1] = address(text);
		pod.cookie = (uint64_t)i + 1;
		pod.addresses = both;
		CHECK(worked(probe_snat_pod(snat, &pod, &err), &err));
		/* Every other one ends again. */
		if (i % 2)
			CHECK(worked(probe_snat_drop(snat, pod.cookie, &err), &err));
		else
			n.as_pod.cookie = pod.cookie;
	}
	n.as_pod.cookie = (uint64_t)pods + 1;
	CHECK(worked(probe_snat_pod(snat, &n.as_pod, &err), &err));
	CHECK(worked(probe_snat_verify(snat, &n.as_pod, &err), &err));
	CHECK_STR(seen_from(&n, "", 0, false), PROBE_V4);
	probe_snat_close(snat);
	CHECK(!nothing_is_left());
	CHECK(worked(probe_snat_uninstall(kind, &n.cfg, &err), &err));
	CHECK(nothing_is_left());
	CHECK(worked(probe_snat_uninstall(kind, &n.cfg, &err), &err));
	node_close(&n);
	return TEST_OK;
}

/* ---- nftables -------------------------------------------------------------------------------- */

TEST(nftables_knows_kubelet_by_its_cgroup)
{
	return by_cgroup(PROBE_SNAT_NFTABLES);
}

TEST(nftables_knows_kubelet_by_its_user)
{
	return by_user(PROBE_SNAT_NFTABLES);
}

TEST(nftables_follows_kubelets_cgroup)
{
	return cgroup_made_again(PROBE_SNAT_NFTABLES);
}

TEST(nftables_sees_and_heals_what_others_change)
{
	static const char *const commands[] = {
		"nft flush ruleset",
		"t=$(nft list tables | awk '{print $3}') && nft flush chain inet $t postrouting",
		("t=$(nft list tables | awk '{print $3}') && "
		 "nft insert rule inet $t postrouting return"),
		"t=$(nft list tables | awk '{print $3}') && "
		"nft delete element inet $t pods-v6 '{ fd77::5 }'",
		"t=$(nft list tables | awk '{print $3}') && "
		"nft add element inet $t pods-v4 '{ 192.0.2.1 }'",
	};

	return tampered(PROBE_SNAT_NFTABLES, commands, COUNT(commands));
}

TEST(nftables_takes_over_and_prunes)
{
	return taken_over(PROBE_SNAT_NFTABLES);
}

TEST(nftables_has_many_and_leaves_nothing)
{
	return many_and_uninstalled(PROBE_SNAT_NFTABLES);
}

/* ---- iptables -------------------------------------------------------------------------------- */

static const enum probe_snat_kind backends[] = {PROBE_SNAT_IPTABLES_NFT,
						PROBE_SNAT_IPTABLES_LEGACY};

typedef enum test_result (*test_fn)(enum probe_snat_kind kind);

static char without[] = "/tmp/sockmesh-no-ipset-XXXXXX";

/* A PATH with everything that is needed but ipset. */
static bool hide_ipset(void)
{
	char command[512];

	if (!mkdtemp(without))
		return false;
	snprintf(command, sizeof(command),
		 "for p in sh ip nft grep awk; do ln -s \"$(command -v $p)\" %s/ || exit; done; "
		 "for p in /usr/sbin/ip*tables*; do ln -s \"$p\" %s/; done",
		 without, without);
	return sh(command) == 0 && setenv("PATH", without, 1) == 0;
}

static void show_ipset(const char *path)
{
	char command[128];

	setenv("PATH", path, 1);
	snprintf(command, sizeof(command), "rm -r %s", without);
	sh(command);
	memcpy(without + strlen(without) - 6, "XXXXXX", 6);
}

static enum test_result with_backends(test_fn test)
{
	enum test_result worst = TEST_OK;

	for (size_t i = 0; i < COUNT(backends) && worst != TEST_FAILED; i++) {
		enum test_result r = test(backends[i]);

		if (r != TEST_OK)
			worst = r;
	}
	return worst;
}

static enum test_result with_both_forms(test_fn test)
{
	char path[PATH_MAX];
	enum test_result r = TEST_OK;

	snprintf(path, sizeof(path), "%s", getenv("PATH"));
	if (sh("command -v ipset >/dev/null") == 0)
		r = with_backends(test);
	if (r == TEST_FAILED)
		return r;
	CHECK(hide_ipset());
	r = with_backends(test);
	show_ipset(path);
	return r;
}

TEST(iptables_knows_kubelet_by_its_cgroup)
{
	return with_both_forms(by_cgroup);
}

TEST(iptables_knows_kubelet_by_its_user)
{
	return with_both_forms(by_user);
}

TEST(iptables_follows_kubelets_cgroup)
{
	return with_both_forms(cgroup_made_again);
}

static enum test_result tampered_iptables(enum probe_snat_kind kind)
{
	static const char *const nft[] = {
		"iptables-nft -t nat -F",
		"ip6tables-nft -t nat -I POSTROUTING -j RETURN",
		("c=$(ip6tables-nft-save -t nat | awk '/^:SOCKMESH/ {print substr($1, 2)}') && "
		 "ip6tables-nft -t nat -F $c"),
	};
	static const char *const legacy[] = {
		"iptables-legacy -t nat -F",
		"ip6tables-legacy -t nat -I POSTROUTING -j RETURN",
		("c=$(ip6tables-legacy-save -t nat | awk '/^:SOCKMESH/ {print substr($1, 2)}') && "
		 "ip6tables-legacy -t nat -F $c"),
	};

	if (kind == PROBE_SNAT_IPTABLES_NFT)
		return tampered(kind, nft, COUNT(nft));
	return tampered(kind, legacy, COUNT(legacy));
}

TEST(iptables_sees_and_heals_what_others_change)
{
	return with_both_forms(tampered_iptables);
}

TEST(iptables_sees_and_heals_sets)
{
	static const char *const commands[] = {
		"s=$(ipset list -n | grep v6) && ipset flush $s",
		"s=$(ipset list -n | grep v4) && ipset add $s 192.0.2.1",
	};

	if (sh("command -v ipset >/dev/null"))
		return TEST_SKIP;
	return tampered(PROBE_SNAT_IPTABLES_NFT, commands, COUNT(commands));
}

TEST(iptables_takes_over_and_prunes)
{
	return with_both_forms(taken_over);
}

TEST(iptables_has_many_and_leaves_nothing)
{
	return with_both_forms(many_and_uninstalled);
}

/* ---- which pods ------------------------------------------------------------------------------ */

TEST(sidecars_and_pods_without_inbound_capture_need_nothing)
{
	struct redirect_plan *plans[] = {plan_of(false, true), plan_of(true, false)};
	struct error err = {0};
	struct probe_snat *snat;
	struct node n;

	CHECK(!node_open(&n));
	snat = open_snat(&n, PROBE_SNAT_NFTABLES, NULL);
	CHECK(snat);
	for (size_t i = 0; i < COUNT(plans); i++) {
		struct redirect_pod pod = n.as_pod;

		pod.plan = pod.pod_plan = plans[i];
		CHECK(worked(probe_snat_pod(snat, &pod, &err), &err));
		CHECK(nothing_is_left());
		CHECK(worked(probe_snat_verify(snat, &pod, &err), &err));
		/* One that becomes such a pod loses what it had. */
		CHECK(worked(probe_snat_pod(snat, &n.as_pod, &err), &err));
		CHECK_EQ(probe_snat_verify(snat, &pod, &err), -ENODEV);
		CHECK(worked(probe_snat_pod(snat, &pod, &err), &err));
		CHECK(nothing_is_left());
		redirect_plan_free(plans[i]);
	}
	probe_snat_close(snat);
	node_close(&n);
	return TEST_OK;
}

/* A late del of the pod before must not take the address of the one that has it now. */
TEST(an_address_that_another_pod_has_now_stays)
{
	struct error err = {0};
	struct redirect_pod second;
	struct probe_snat *snat;
	struct node n;

	CHECK(!node_open(&n));
	second = n.as_pod;
	second.cookie = OTHER_COOKIE;
	snat = open_snat(&n, PROBE_SNAT_NFTABLES, NULL);
	CHECK(snat && worked(probe_snat_pod(snat, &n.as_pod, &err), &err));
	CHECK(worked(probe_snat_pod(snat, &second, &err), &err));
	CHECK(worked(probe_snat_drop(snat, COOKIE, &err), &err));
	CHECK(worked(probe_snat_verify(snat, &second, &err), &err));
	CHECK_STR(seen_from(&n, "", 0, false), PROBE_V4);
	CHECK(worked(probe_snat_drop(snat, OTHER_COOKIE, &err), &err));
	CHECK(nothing_is_left());
	probe_snat_close(snat);
	node_close(&n);
	return TEST_OK;
}

TEST(nftables_goes_when_the_next_agent_has_another_engine)
{
	return left_for_another(PROBE_SNAT_NFTABLES, REDIRECT_IPTABLES);
}

TEST(iptables_goes_when_the_next_agent_has_another_engine)
{
	return left_for_another(PROBE_SNAT_IPTABLES_LEGACY, REDIRECT_NFTABLES);
}
