/* SPDX-License-Identifier: Apache-2.0 */
#include "metrics_facts.h"

#include "accelerate.h"
#include "agent_protocol.h"
#include "enrolment.h"
#include "json.h"
#include "queries.h"
#include "scoped.h"

#include <dirent.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

static void set_integer(json_t *object, const char *name, json_int_t value)
{
	json_object_set_new(object, name, json_integer(value));
}

static void add_memory(json_t *process)
{
	scoped_file FILE *statm = fopen("/proc/self/statm", "re");
	long long pages;

	if (statm && fscanf(statm, "%*d %lld", &pages) == 1)
		set_integer(process, "residentBytes", pages * sysconf(_SC_PAGESIZE));
}

static void add_descriptors(json_t *process)
{
	scoped_dir DIR *dir = opendir("/proc/self/fd");
	json_int_t n = 0;
	struct rlimit limit;

	for (const struct dirent *entry; dir && (entry = readdir(dir));)
		n += entry->d_name[0] != '.';
	if (dir)
		set_integer(process, "openFds", n - 1); /* but for the directory's own */
	if (!getrlimit(RLIMIT_NOFILE, &limit))
		set_integer(process, "maxFds", (json_int_t)limit.rlim_cur);
}

static double seconds(struct timeval time)
{
	return (double)time.tv_sec + (double)time.tv_usec / 1e6;
}

static json_t *process_json(void)
{
	json_t *process = json_object();
	struct rusage usage;

	if (!process)
		return NULL;
	add_memory(process);
	add_descriptors(process);
	if (!getrusage(RUSAGE_SELF, &usage))
		json_object_set_new(process, "cpuSeconds",
				    json_real(seconds(usage.ru_utime) + seconds(usage.ru_stime)));
	return process;
}

json_t *metrics_facts(const struct queries *queries)
{
	const struct agent_request status = {.op = AGENT_STATUS};

	if (!queries->enrolment) /* still starting */
		return json_pack("{s:o}", "process", process_json());
	return json_pack("{s:o, s:o*, s:o}", "status", queries_handle(queries, &status), "probe",
			 accelerate_probe_json(queries->accelerate), "process", process_json());
}

const char *metrics_not_ready(const struct queries *queries)
{
	scoped_json json_t *status = NULL;
	const json_t *kubernetes;

	if (!queries->enrolment)
		return "the agent is starting";
	status = enrolment_status(queries->enrolment);
	if (!status)
		return "out of memory";
	kubernetes = json_object_get(status, "kubernetes");
	if (json_is_object(kubernetes) && !json_is_true(json_object_get(kubernetes, "complete")))
		return "the API server has not yet told of all pods of this node and all "
		       "namespaces";
	return NULL;
}
