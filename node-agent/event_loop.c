/* SPDX-License-Identifier: Apache-2.0 */
#include "event_loop.h"

#include "error.h"
#include "scoped.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>

enum { EVENTS_PER_WAIT = 32 };

struct event_source {
	struct event_loop *loop;
	struct event_source *next, **link; /* every source of the loop, live or removed */
	int fd;
	bool is_timer, repeats, removed;
	event_fd_fn on_fd;
	event_timer_fn on_timer;
	void *arg;
};

struct event_loop {
	int epoll_fd;
	bool stop;
	struct event_source *live;
	struct event_source *removed; /* freed once no fetched event can name them any more */
};

static void list_insert(struct event_source **head, struct event_source *source)
{
	source->next = *head;
	source->link = head;
	if (*head)
		(*head)->link = &source->next;
	*head = source;
}

static void list_take(struct event_source *source)
{
	*source->link = source->next;
	if (source->next)
		source->next->link = source->link;
}

static void free_all(struct event_source **head)
{
	struct event_source *source = *head, *next;

	for (*head = NULL; source; source = next) {
		next = source->next;
		if (source->is_timer)
			scoped_close(&source->fd);
		free(source);
	}
}

int event_loop_new(struct event_loop **ret, struct error *err)
{
	struct event_loop *loop = calloc(1, sizeof(*loop));

	if (!loop)
		return error_set(err, ENOMEM, "event loop");
	loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (loop->epoll_fd < 0) {
		int code = errno;

		free(loop);
		return error_set(err, code, "epoll_create1");
	}
	*ret = loop;
	return 0;
}

void event_loop_free(struct event_loop *loop)
{
	if (!loop)
		return;
	free_all(&loop->live);
	free_all(&loop->removed);
	close(loop->epoll_fd);
	free(loop);
}

static int source_new(struct event_loop *loop, int fd, uint32_t events,
		      const struct event_source *template, struct event_source **ret,
		      struct error *err)
{
	struct event_source *source = malloc(sizeof(*source));
	struct epoll_event event = {.events = events, .data.ptr = source};

	if (!source)
		return error_set(err, ENOMEM, "event source");
	*source = *template;
	source->loop = loop;
	source->fd = fd;
	if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
		int code = errno;

		free(source);
		return error_set(err, code, "epoll_ctl add");
	}
	list_insert(&loop->live, source);
	if (ret)
		*ret = source;
	return 0;
}

int event_loop_add_fd(struct event_loop *loop, int fd, uint32_t events, event_fd_fn fn, void *arg,
		      struct event_source **ret, struct error *err)
{
	return source_new(loop, fd, events, &(struct event_source){.on_fd = fn, .arg = arg}, ret,
			  err);
}

int event_loop_set_events(struct event_source *source, uint32_t events, struct error *err)
{
	struct epoll_event event = {.events = events, .data.ptr = source};

	if (epoll_ctl(source->loop->epoll_fd, EPOLL_CTL_MOD, source->fd, &event) < 0)
		return error_set(err, errno, "epoll_ctl mod");
	return 0;
}

static struct timespec from_ms(uint64_t ms)
{
	return (struct timespec){.tv_sec = (time_t)(ms / 1000),
				 .tv_nsec = (long)(ms % 1000) * 1000000};
}

int event_loop_add_timer(struct event_loop *loop, uint64_t delay_ms, uint64_t period_ms,
			 event_timer_fn fn, void *arg, struct event_source **ret, struct error *err)
{
	scoped_fd int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	struct itimerspec when = {.it_value = from_ms(delay_ms), .it_interval = from_ms(period_ms)};
	struct event_source template = {
		.is_timer = true, .repeats = period_ms != 0, .on_timer = fn, .arg = arg};
	int r;

	if (fd < 0)
		return error_set(err, errno, "timerfd_create");
	if (!delay_ms)
		when.it_value.tv_nsec = 1; /* all zero would disarm it */
	if (timerfd_settime(fd, 0, &when, NULL) < 0)
		return error_set(err, errno, "timerfd_settime");
	r = source_new(loop, fd, EPOLLIN, &template, ret, err);
	if (!r)
		take_fd(&fd);
	return r;
}

void event_loop_remove(struct event_source *source)
{
	if (!source || source->removed)
		return;
	/* The caller may have closed its fd already, which has taken it out of the epoll set. */
	epoll_ctl(source->loop->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
	source->removed = true;
	list_take(source);
	list_insert(&source->loop->removed, source);
}

static void dispatch(struct event_source *source, uint32_t events)
{
	uint64_t expirations;

	if (!source->is_timer) {
		source->on_fd(source->fd, events, source->arg);
		return;
	}
	if (read(source->fd, &expirations, sizeof(expirations)) != sizeof(expirations))
		return; /* EAGAIN: set again since the event was fetched */
	if (!source->repeats)
		event_loop_remove(source); /* before the call: it may remove itself or free arg */
	source->on_timer(source->arg);
}

int event_loop_run(struct event_loop *loop, struct error *err)
{
	struct epoll_event events[EVENTS_PER_WAIT];

	loop->stop = false;
	while (!loop->stop) {
		int n = epoll_wait(loop->epoll_fd, events, EVENTS_PER_WAIT, -1);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_set(err, errno, "epoll_wait");
		for (int i = 0; i < n && !loop->stop; i++) {
			struct event_source *source = events[i].data.ptr;

			if (!source->removed)
				dispatch(source, events[i].events);
		}
		free_all(&loop->removed);
	}
	return 0;
}

void event_loop_stop(struct event_loop *loop)
{
	loop->stop = true;
}
