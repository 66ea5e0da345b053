/* SPDX-License-Identifier: Apache-2.0 */
#include "connection_reset.h"

#include "error.h"
#include "ip_address.h"
#include "netlink_talk.h"
#include "netns.h"

#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum {
	CONNECTIONS_MAX = 1 << 17,
	TCP_TIME_WAIT_STATE = 6,
	TCP_CLOSE_STATE = 7,
	TCP_LISTEN_STATE = 10,
	TCP_NEW_SYN_RECV_STATE = 12,
};

struct connection {
	uint8_t family;
	struct inet_diag_sockid id;
};

struct cut {
	uint32_t mark, mark_mask;
	struct connection *list;
	size_t n, capacity;
	size_t n_cut;
	bool no_memory;
};

static void forget(void *arg)
{
	struct cut *cut = arg;

	cut->n = 0;
}

static struct ip_address address_of(uint8_t family, const __be32 raw[4])
{
	struct ip_address a;

	if (family == AF_INET)
		ip_address_from_v4(raw[0], &a);
	else
		ip_address_from_v6(raw, &a);
	return a;
}

static bool is_within_pod(const struct inet_diag_msg *msg)
{
	struct ip_address local = address_of(msg->idiag_family, msg->id.idiag_src);
	struct ip_address remote = address_of(msg->idiag_family, msg->id.idiag_dst);

	return ip_address_is_loopback(&remote) || ip_address_equal(&local, &remote);
}

static uint32_t mark_of(const struct nlmsghdr *nlh)
{
	const struct nlattr *attr;

	mnl_attr_for_each(attr, nlh, sizeof(struct inet_diag_msg))
	{
		if (mnl_attr_get_type(attr) == INET_DIAG_MARK)
			return mnl_attr_get_u32(attr);
	}
	return 0;
}

static int on_connection(const struct nlmsghdr *nlh, void *arg)
{
	const struct inet_diag_msg *msg = mnl_nlmsg_get_payload(nlh);
	struct cut *cut = arg;

	if (is_within_pod(msg) || (mark_of(nlh) & cut->mark_mask) == cut->mark)
		return MNL_CB_OK;
	if (cut->n == cut->capacity) {
		size_t grown = cut->capacity ? cut->capacity * 2 : 64;
		struct connection *list;

		if (grown > CONNECTIONS_MAX)
			return MNL_CB_OK;
		list = reallocarray(cut->list, grown, sizeof(*list));
		if (!list) {
			cut->no_memory = true;
			return MNL_CB_OK;
		}
		cut->list = list;
		cut->capacity = grown;
	}
	cut->list[cut->n++] = (struct connection){.family = msg->idiag_family, .id = msg->id};
	return MNL_CB_OK;
}

static struct nlmsghdr *start(struct netlink_request *request, uint16_t type, uint16_t flags,
			      uint8_t family, struct inet_diag_req_v2 **ret)
{
	struct nlmsghdr *nlh = netlink_request_start(request, type, flags, sizeof(**ret), ret);

	(*ret)->sdiag_family = family;
	(*ret)->sdiag_protocol = IPPROTO_TCP;
	return nlh;
}

static int list_connections(struct cut *cut, uint8_t family)
{
	const uint32_t dead = 1u << TCP_TIME_WAIT_STATE | 1u << TCP_CLOSE_STATE |
			      1u << TCP_LISTEN_STATE | 1u << TCP_NEW_SYN_RECV_STATE;
	struct netlink_request request;
	struct inet_diag_req_v2 *req;
	struct nlmsghdr *nlh = start(&request, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, &req);

	req->idiag_states = ~dead;
	return netlink_dump(NETLINK_SOCK_DIAG, nlh, on_connection, forget, cut);
}

/* One that has ended by itself meanwhile is as good as cut. */
static int cut_one(const struct connection *c)
{
	struct netlink_request request;
	struct inet_diag_req_v2 *req;
	struct nlmsghdr *nlh = start(&request, SOCK_DESTROY, NLM_F_ACK, c->family, &req);
	int r;

	req->id = c->id;
	r = netlink_talk(NETLINK_SOCK_DIAG, nlh, NULL, NULL);
	return r == -ENOENT ? 0 : r;
}

static int cut_family(struct cut *cut, uint8_t family, struct error *err)
{
	int r = list_connections(cut, family);

	if (r == -ENOENT)
		return 0; /* a kernel without this family */
	if (r || cut->no_memory)
		return error_set(err, r ? -r : ENOMEM, "list the pod's connections");
	for (size_t i = 0; i < cut->n; i++) {
		r = cut_one(&cut->list[i]);
		if (r)
			return error_set(err, -r, "cut a connection of the pod");
		cut->n_cut++;
	}
	return 0;
}

static int cut_inside(void *arg, struct error *err)
{
	int r = cut_family(arg, AF_INET, err);

	return r ? r : cut_family(arg, AF_INET6, err);
}

int connection_reset(int netns_fd, uint32_t mark, uint32_t mark_mask, size_t *ret_n,
		     struct error *err)
{
	struct cut cut = {.mark = mark, .mark_mask = mark_mask};
	int r = netns_run(netns_fd, cut_inside, &cut, err);

	free(cut.list);
	if (!r)
		*ret_n = cut.n_cut;
	return r;
}
