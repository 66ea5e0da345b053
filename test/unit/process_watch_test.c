/* SPDX-License-Identifier: Apache-2.0 */
/* Real programs that start in a real namespace. Needs root and a kernel that loads BPF programs. */
#include "process_watch.h"

#include "error.h"
#include "event_loop.h"
#include "test.h"

#include <sched.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { DEADLINE_MS = 10000, NOTICES_MAX = 64 };

struct heard {
	struct event_loop *loop;
	struct process_watch *watch;
	pid_t wanted, pids[NOTICES_MAX];
	unsigned n;
	bool switch_off;
};

static void on_process(pid_t pid, void *arg)
{
	struct heard *heard = arg;
	struct error err = {0};

	if (heard->n < NOTICES_MAX)
		heard->pids[heard->n++] = pid;
	if (pid != heard->wanted)
		return;
	if (heard->switch_off && process_watch_switch(heard->watch, false, &err))
		abort();
	event_loop_stop(heard->loop);
}

static void on_deadline(void *arg)
{
	event_loop_stop(arg);
}

static unsigned times_heard(const struct heard *heard, pid_t pid)
{
	unsigned n = 0;

	for (unsigned i = 0; i < heard->n; i++)
		n += heard->pids[i] == pid;
	return n;
}

/* A child in a namespace of its own that runs /bin/true, `execs` of them one after the other. */
static pid_t start_in_new_netns(const char *execs)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	if (unshare(CLONE_NEWNET) < 0)
		_exit(2);
	execl("/bin/sh", "sh", "-c", execs, (char *)NULL);
	_exit(3);
}

static bool open_all(struct heard *heard)
{
	struct error err = {0};
	int r = event_loop_new(&heard->loop, &err);

	if (!r)
		r = process_watch_new(heard->loop, on_process, heard, &heard->watch, &err);
	if (!r)
		r = event_loop_add_timer(heard->loop, DEADLINE_MS, 0, on_deadline, heard->loop,
					 NULL, &err);
	if (!r)
		r = process_watch_switch(heard->watch, true, &err);
	if (r)
		printf("# %s\n", err.text);
	return !r;
}

static void close_all(struct heard *heard)
{
	process_watch_free(heard->watch);
	event_loop_free(heard->loop);
}

TEST(the_first_program_in_a_new_namespace_is_told_once)
{
	struct heard heard = {0};
	struct error err = {0};
	int status = -1;

	CHECK(open_all(&heard));
	heard.wanted = start_in_new_netns("/bin/true; /bin/true; exit 0");
	CHECK(heard.wanted > 0);
	CHECK_EQ(waitpid(heard.wanted, &status, 0), heard.wanted);
	CHECK_EQ(status, 0);
	CHECK(!event_loop_run(heard.loop, &err));
	CHECK_EQ(times_heard(&heard, heard.wanted), 1);
	close_all(&heard);
	return TEST_OK;
}

TEST(it_can_be_switched_off_by_whom_it_tells)
{
	struct heard heard = {.switch_off = true};
	struct error err = {0};

	CHECK(open_all(&heard));
	heard.wanted = start_in_new_netns("exit 0");
	CHECK(heard.wanted > 0);
	CHECK_EQ(waitpid(heard.wanted, NULL, 0), heard.wanted);
	CHECK(!event_loop_run(heard.loop, &err));
	CHECK_EQ(times_heard(&heard, heard.wanted), 1);
	CHECK(!process_watch_switch(heard.watch, false, &err)); /* again */
	CHECK(!process_watch_switch(heard.watch, true, &err));
	close_all(&heard);
	return TEST_OK;
}
