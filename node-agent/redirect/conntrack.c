/* SPDX-License-Identifier: Apache-2.0 */
#include "conntrack.h"

#include "error.h"
#include "netlink_talk.h"
#include "netns.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>
#include <sys/socket.h>

int conntrack_list(mnl_cb_t fn, void (*reset)(void *arg), void *arg, struct error *err)
{
	struct netlink_request request;
	struct nfgenmsg *nfgen;
	const struct nlmsghdr *nlh =
		netlink_request_start(&request, (NFNL_SUBSYS_CTNETLINK << 8) | IPCTNL_MSG_CT_GET,
				      NLM_F_DUMP, sizeof(*nfgen), &nfgen);
	int r;

	nfgen->nfgen_family = AF_UNSPEC; /* both; and without CTA_ZONE, every zone */
	nfgen->version = NFNETLINK_V0;
	r = netlink_dump(NETLINK_NETFILTER, nlh, fn, reset, arg);
	/* Without nfnetlink the kernel has no such socket, without ctnetlink no such subsystem. */
	if (r == -EPROTONOSUPPORT || r == -EINVAL || r == -EOPNOTSUPP)
		return error_set(err, EOPNOTSUPP, "the kernel cannot list connections (ctnetlink)");
	return r ? error_set(err, -r, "list the pod's tracked connections") : 0;
}

struct count {
	uint32_t mark, mask;
	size_t n;
};

static void start_again(void *arg)
{
	struct count *count = arg;

	count->n = 0;
}

/*
 * IPS_SRC_NAT and IPS_DST_NAT say that an address or port really differs; IPS_*_NAT_DONE only that
 * a nat chain was asked, which is true of every flow in a namespace with such a chain.
 */
static int count_entry(const struct nlmsghdr *nlh, void *arg)
{
	struct count *count = arg;
	const struct nlattr *attr;
	uint32_t status = 0, mark = 0;

	if (nlh->nlmsg_type != ((NFNL_SUBSYS_CTNETLINK << 8) | IPCTNL_MSG_CT_NEW) ||
	    mnl_nlmsg_get_payload_len(nlh) < sizeof(struct nfgenmsg))
		return MNL_CB_OK;
	mnl_attr_for_each(attr, nlh, sizeof(struct nfgenmsg))
	{
		if (mnl_attr_get_payload_len(attr) != sizeof(uint32_t))
			continue;
		if (mnl_attr_get_type(attr) == CTA_STATUS)
			status = ntohl(mnl_attr_get_u32(attr));
		else if (mnl_attr_get_type(attr) == CTA_MARK)
			mark = ntohl(mnl_attr_get_u32(attr));
	}
	if ((status & (IPS_SRC_NAT | IPS_DST_NAT)) ||
	    (count->mask && (mark & count->mask) == count->mark))
		count->n++;
	return MNL_CB_OK;
}

static int count_inside(void *arg, struct error *err)
{
	return conntrack_list(count_entry, start_again, arg, err);
}

int conntrack_count_captured(int netns_fd, uint32_t mark, uint32_t mask, size_t *ret,
			     struct error *err)
{
	struct count count = {.mark = mark, .mask = mask};
	int r = netns_run(netns_fd, count_inside, &count, err);

	if (!r)
		*ret = count.n;
	return r;
}
