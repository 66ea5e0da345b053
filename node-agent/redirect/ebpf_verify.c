/* SPDX-License-Identifier: Apache-2.0 */
#include "ebpf_engine.h"

#include "error.h"
#include "netlink.h"
#include "scoped.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

static int verify_sets(struct ebpf *e, const struct ebpf_policy *p, struct error *err)
{
	struct datapath_bpf *d = e->datapath;
	__u32 bits;

	for (size_t i = 0; i < p->n_ids; i++)
		if (bpf_map_lookup_elem(bpf_map__fd(d->maps.id_sets), &p->ids[i].key, &bits) ||
		    bits != p->ids[i].bits)
			return error_set(err, ENODEV, "id %u differs", p->ids[i].key.id);
	for (size_t i = 0; i < p->n_ports; i++)
		if (bpf_map_lookup_elem(bpf_map__fd(d->maps.port_sets), &p->ports[i].key, &bits) ||
		    bits != p->ports[i].bits)
			return error_set(err, ENODEV, "port %u differs", p->ports[i].key.port);
	for (size_t i = 0; i < p->n_prefixes; i++)
		if (bpf_map_lookup_elem(bpf_map__fd(d->maps.prefix_sets), &p->prefixes[i].key,
					&bits) ||
		    bits != p->prefixes[i].bits)
			return error_set(err, ENODEV, "prefix %zu of the lists differs", i);
	return 0;
}

static int verify_config(struct ebpf *e, const struct redirect_pod *pod, struct error *err)
{
	struct pod_config want, got;
	struct ebpf_policy policy;
	int r;

	if (!ebpf_pods_config(e, pod->cookie, &got))
		return error_set(err, ENODEV, "the kernel does not have the pod");
	r = ebpf_pod_config_build(pod->plan, got.policy, pod->addresses, pod->n_addresses, &want,
				  err);
	if (r)
		return r;
	want.netns = pod->cookie;
	want.flags |= POD_ACTIVE | (got.flags & POD_CHANGES);
	if (memcmp(&want, &got, sizeof(want)) != 0)
		return error_set(err, ENODEV, "the kernel has another plan for the pod");
	if (!pod->plan->ambient && (got.flags & POD_AMBIENT_CHANGES))
		return error_set(err, ENODEV, "what an ambient pod needs is still there");
	r = ebpf_policy_build(pod->plan, got.policy, &policy, err);
	if (r)
		return r;
	r = verify_sets(e, &policy, err);
	ebpf_policy_done(&policy);
	return r;
}

/* ::6 is wanted where the pod has an IPv6 address that others can reach. */
static int verify_passthrough(const struct ip_address *now, size_t n, struct error *err)
{
	static const struct ip_address passthrough = {.bytes = {[15] = 6}};
	bool present = false, global = false;

	for (size_t i = 0; i < n; i++) {
		if (ip_address_equal(&now[i], &passthrough))
			present = true;
		else
			global |= !ip_address_is_v4(&now[i]) && !ip_address_is_loopback(&now[i]) &&
				  !ip_address_is_link_local(&now[i]);
	}
	return global && !present ? error_set(err, ENODEV, "the address ::6 on lo is missing") : 0;
}

static int verify_addresses(struct ebpf *e, const struct redirect_pod *pod, struct error *err)
{
	scoped_free struct ip_address *now = NULL;
	size_t n = 0;
	int r = netlink_list_addresses(pod->netns_fd, &now, &n, err);

	for (size_t i = 0; !r && i < n; i++) {
		struct local_address_key key = {.netns = pod->cookie, .addr = addr16_of(&now[i])};
		char text[IP_ADDRESS_TEXT_MAX];
		__u8 value;

		if (bpf_map_lookup_elem(bpf_map__fd(e->datapath->maps.local_addresses), &key,
					&value))
			r = error_set(err, ENODEV, "the pod's address %s is not known",
				      ip_address_format(&now[i], text));
	}
	if (!r && redirect_plan_wants_passthrough(pod->plan))
		r = verify_passthrough(now, n, err);
	return r;
}

int ebpf_verify(void *state, const struct redirect_pod *pod, struct error *err)
{
	struct ebpf *e = state;
	char path[PIN_PATH_MAX];
	struct stat st;
	int r = verify_config(e, pod, err);

	if (!r)
		r = ebpf_attach_verify(e, err);
	if (!r && fstat(pod->netns_fd, &st) < 0)
		r = error_set(err, errno, "stat the pod's namespace");
	if (!r) {
		ebpf_pins_pod_path(&e->pins, pod->cookie, path);
		r = ebpf_pins_check(path, st.st_ino, NULL, err);
	}
	if (!r)
		r = verify_addresses(e, pod, err);
	if (!r && pod->plan->ambient)
		r = ebpf_ambient_verify(pod, err);
	if (!r && pod->plan->ambient)
		r = ebpf_kubelet_verify(e, err);
	return r;
}
