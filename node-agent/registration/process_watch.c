/* SPDX-License-Identifier: Apache-2.0 */
#include "process_watch.h"

#include "error.h"
#include "event_loop.h"
#include "process_watch_abi.h"

#include "process_watch.skel.h"

#include <bpf/libbpf.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/stat.h>

struct process_watch {
	struct event_loop *loop;
	process_watch_fn fn;
	void *arg;
	struct process_watch_bpf *skel; /* NULL: it is off */
	struct ring_buffer *notices;
	struct event_source *source;
	uint64_t lost;	  /* told already */
	bool is_reading;  /* the buffer, which must not be freed then */
	bool is_unwanted; /* and is to be switched off afterwards */
};

int process_watch_new(struct event_loop *loop, process_watch_fn fn, void *arg,
		      struct process_watch **ret, struct error *err)
{
	struct process_watch *watch = calloc(1, sizeof(*watch));

	if (!watch)
		return error_set(err, ENOMEM, "watch over processes");
	watch->loop = loop;
	watch->fn = fn;
	watch->arg = arg;
	*ret = watch;
	return 0;
}

static void switch_off(struct process_watch *watch)
{
	event_loop_remove(watch->source);
	ring_buffer__free(watch->notices);
	process_watch_bpf__destroy(watch->skel);
	watch->source = NULL;
	watch->notices = NULL;
	watch->skel = NULL;
	watch->lost = 0;
	watch->is_unwanted = false;
}

void process_watch_free(struct process_watch *watch)
{
	if (!watch)
		return;
	switch_off(watch);
	free(watch);
}

static int on_notice(void *arg, void *data, size_t size)
{
	struct process_watch *watch = arg;
	const struct process_notice *notice = data;

	if (size >= sizeof(*notice) && notice->pid)
		watch->fn((pid_t)notice->pid, watch->arg);
	return 0;
}

static void on_notices(int fd, uint32_t events, void *arg)
{
	struct process_watch *watch = arg;
	uint64_t lost;

	(void)fd;
	(void)events;
	if (!watch->skel)
		return;
	lost = watch->skel->bss->process_lost;
	watch->is_reading = true;
	ring_buffer__consume(watch->notices);
	if (lost != watch->lost)
		watch->fn(0, watch->arg);
	watch->lost = lost;
	watch->is_reading = false;
	if (watch->is_unwanted)
		switch_off(watch);
}

static int load(struct process_watch_bpf **ret, struct error *err)
{
	struct process_watch_bpf *skel = process_watch_bpf__open();
	struct stat st;
	int r;

	if (!skel)
		return error_set(err, errno, "open the watch over processes");
	if (!stat("/proc/1/ns/net", &st))
		skel->rodata->host_netns = (uint32_t)st.st_ino;
	r = process_watch_bpf__load(skel);
	if (r)
		error_set(err, -r, "load the watch over processes");
	else if ((r = process_watch_bpf__attach(skel)))
		error_set(err, -r, "attach to raw_tp/sched_process_exec");
	if (r)
		process_watch_bpf__destroy(skel);
	else
		*ret = skel;
	return r;
}

static int switch_on(struct process_watch *watch, struct error *err)
{
	int r = load(&watch->skel, err);

	if (r || !watch->skel)
		return r;
	watch->notices = ring_buffer__new(bpf_map__fd(watch->skel->maps.process_notices), on_notice,
					  watch, NULL);
	if (!watch->notices)
		r = error_set(err, errno, "read the watch over processes");
	else
		r = event_loop_add_fd(watch->loop, ring_buffer__epoll_fd(watch->notices), EPOLLIN,
				      on_notices, watch, &watch->source, err);
	if (r)
		switch_off(watch);
	return r;
}

int process_watch_switch(struct process_watch *watch, bool on, struct error *err)
{
	watch->is_unwanted = !on && watch->is_reading;
	if (on == (watch->skel != NULL) || watch->is_unwanted)
		return 0;
	if (on)
		return switch_on(watch, err);
	switch_off(watch);
	return 0;
}
