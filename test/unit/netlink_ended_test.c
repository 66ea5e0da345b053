/* SPDX-License-Identifier: Apache-2.0 */
#include "netlink.h"

#include "error.h"
#include "monotonic.h"
#include "netns.h"
#include "scoped.h"
#include "test.h"

#include <poll.h>
#include <stdint.h>
#include <unistd.h>

enum { PATIENCE_MS = 30 * 1000 };

struct wanted {
	int id;
	bool has_ended;
};

static void on_ended(int id, void *arg)
{
	struct wanted *wanted = arg;

	wanted->has_ended |= id == wanted->id;
}

TEST(the_end_of_a_namespace_is_heard_of)
{
	struct wanted wanted = {0};
	scoped_fd int ended = -1;
	int64_t deadline = monotonic_ms() + PATIENCE_MS;
	struct error err = {0};
	bool lives = false;
	int netns = -1;

	if (netns_new(&netns, &err))
		return TEST_SKIP;
	CHECK_EQ(netlink_ended_open(&ended, &err), 0);
	CHECK_EQ(netlink_namespace_id(netns, &wanted.id, &err), 0);
	netlink_ended_read(ended, on_ended, &wanted);
	CHECK(!wanted.has_ended);
	CHECK_EQ(netlink_namespace_lives(wanted.id, &lives, &err), 0);
	CHECK(lives);
	close(netns);
	while (!wanted.has_ended && monotonic_ms() < deadline) {
		struct pollfd p = {.fd = ended, .events = POLLIN};

		poll(&p, 1, 100);
		netlink_ended_read(ended, on_ended, &wanted);
	}
	CHECK(wanted.has_ended);
	return TEST_OK;
}
