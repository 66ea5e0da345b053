/* SPDX-License-Identifier: Apache-2.0 */
#include "event_loop.h"

#include "error.h"
#include "test.h"

#include <fcntl.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <unistd.h>

struct counter {
	struct event_loop *loop;
	struct event_source *own, *other;
	int calls, stop_after;
	bool remove_own, remove_other;
};

static void count(struct counter *c)
{
	c->calls++;
	if (c->remove_own)
		event_loop_remove(c->own);
	if (c->remove_other)
		event_loop_remove(c->other);
	if (c->calls == c->stop_after)
		event_loop_stop(c->loop);
}

static void on_fd(int fd, uint32_t events, void *arg)
{
	(void)fd;
	(void)events;
	count(arg);
}

static void on_timer(void *arg)
{
	count(arg);
}

static void on_deadline(void *arg)
{
	event_loop_stop(arg);
}

TEST(a_readable_descriptor_is_called_until_it_is_removed)
{
	struct error err = {0};
	struct event_loop *loop;
	struct counter c = {.stop_after = 3};
	int fds[2];

	CHECK(!event_loop_new(&loop, &err));
	c.loop = loop;
	CHECK(!pipe2(fds, O_CLOEXEC | O_NONBLOCK));
	CHECK_EQ(write(fds[1], "x", 1), 1);
	CHECK(!event_loop_add_fd(loop, fds[0], EPOLLIN, on_fd, &c, &c.own, &err));
	CHECK(!event_loop_run(loop, &err));
	CHECK_EQ(c.calls, 3); /* level-triggered: nobody read the byte */

	event_loop_remove(c.own);
	event_loop_remove(NULL);
	CHECK(!event_loop_add_timer(loop, 20, 0, on_deadline, loop, NULL, &err));
	CHECK(!event_loop_run(loop, &err));
	CHECK_EQ(c.calls, 3);
	event_loop_free(loop);
	CHECK(!close(fds[0]) && !close(fds[1])); /* they stayed ours */
	return TEST_OK;
}

TEST(set_events_silences_and_wakes_a_descriptor)
{
	struct error err = {0};
	struct event_loop *loop;
	struct counter c = {.stop_after = 1};
	int fds[2];

	CHECK(!event_loop_new(&loop, &err));
	c.loop = loop;
	CHECK(!pipe2(fds, O_CLOEXEC | O_NONBLOCK));
	CHECK_EQ(write(fds[1], "x", 1), 1);
	CHECK(!event_loop_add_fd(loop, fds[0], 0, on_fd, &c, &c.own, &err));
	CHECK(!event_loop_add_timer(loop, 20, 0, on_deadline, loop, NULL, &err));
	CHECK(!event_loop_run(loop, &err));
	CHECK_EQ(c.calls, 0);
	CHECK(!event_loop_set_events(c.own, EPOLLIN, &err));
	CHECK(!event_loop_run(loop, &err));
	CHECK_EQ(c.calls, 1);
	event_loop_free(loop);
	close(fds[0]);
	close(fds[1]);
	return TEST_OK;
}

/* Both are ready in one epoll_wait(); whichever comes first removes the other. */
TEST(a_source_removed_by_another_callback_is_not_called_again)
{
	struct error err = {0};
	struct event_loop *loop;
	struct counter a = {.stop_after = 1, .remove_other = true};
	struct counter b = {.stop_after = 1, .remove_other = true};
	int fds[2][2];

	CHECK(!event_loop_new(&loop, &err));
	a.loop = b.loop = loop;
	for (int i = 0; i < 2; i++) {
		CHECK(!pipe2(fds[i], O_CLOEXEC | O_NONBLOCK));
		CHECK_EQ(write(fds[i][1], "x", 1), 1);
	}
	CHECK(!event_loop_add_fd(loop, fds[0][0], EPOLLIN, on_fd, &a, &a.own, &err));
	CHECK(!event_loop_add_fd(loop, fds[1][0], EPOLLIN, on_fd, &b, &b.own, &err));
	a.other = b.own;
	b.other = a.own;
	CHECK(!event_loop_run(loop, &err));
	CHECK_EQ(a.calls + b.calls, 1);
	a.stop_after = b.stop_after = 3;
	a.remove_other = b.remove_other = false;
	CHECK(!event_loop_run(loop, &err));
	CHECK(a.calls == 0 || b.calls == 0);
	event_loop_free(loop);
	for (int i = 0; i < 2; i++) {
		close(fds[i][0]);
		close(fds[i][1]);
	}
	return TEST_OK;
}

TEST(a_callback_may_remove_its_own_source)
{
	struct error err = {0};
	struct event_loop *loop;
	struct counter fd = {.remove_own = true}, timer = {.remove_own = true};
	int fds[2];

	CHECK(!event_loop_new(&loop, &err));
	fd.loop = timer.loop = loop;
	CHECK(!pipe2(fds, O_CLOEXEC | O_NONBLOCK));
	CHECK_EQ(write(fds[1], "x", 1), 1);
	CHECK(!event_loop_add_fd(loop, fds[0], EPOLLIN, on_fd, &fd, &fd.own, &err));
	CHECK(!event_loop_add_timer(loop, 1, 1, on_timer, &timer, &timer.own, &err));
	CHECK(!event_loop_add_timer(loop, 30, 0, on_deadline, loop, NULL, &err));
	CHECK(!event_loop_run(loop, &err));
	CHECK_EQ(fd.calls, 1);
	CHECK_EQ(timer.calls, 1);
	event_loop_free(loop);
	close(fds[0]);
	close(fds[1]);
	return TEST_OK;
}

TEST(timers_fire_once_or_again_and_at_once_for_zero)
{
	struct error err = {0};
	struct event_loop *loop;
	struct counter once = {0}, again = {.stop_after = 3}, now = {0};

	CHECK(!event_loop_new(&loop, &err));
	once.loop = again.loop = now.loop = loop;
	CHECK(!event_loop_add_timer(loop, 1, 0, on_timer, &once, &once.own, &err));
	CHECK(!event_loop_add_timer(loop, 0, 0, on_timer, &now, NULL, &err));
	CHECK(!event_loop_add_timer(loop, 20, 5, on_timer, &again, NULL, &err));
	CHECK(!event_loop_run(loop, &err));
	CHECK_EQ(once.calls, 1);
	CHECK_EQ(now.calls, 1);
	CHECK_EQ(again.calls, 3);
	event_loop_free(loop);
	event_loop_free(NULL);
	return TEST_OK;
}

TEST(a_bad_descriptor_is_refused)
{
	struct error err = {0};
	struct event_loop *loop;
	struct event_source *source = NULL;

	CHECK(!event_loop_new(&loop, &err));
	CHECK(event_loop_add_fd(loop, 9999, EPOLLIN, on_fd, NULL, &source, &err) < 0);
	CHECK(!source);
	event_loop_free(loop);
	return TEST_OK;
}
