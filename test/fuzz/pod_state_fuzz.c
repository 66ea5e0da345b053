/* SPDX-License-Identifier: Apache-2.0 */
/* A state file that is read must be written as it was, entry by entry, and read the same again. */
#include "error.h"
#include "pod_state.h"
#include "pod_table.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void free_pods(struct pod **pods, size_t n)
{
	for (size_t i = 0; i < n; i++)
		pod_free(pods[i]);
	free(pods);
}

/* What the fields say, as text. */
static char *encoded(const struct pod *pod)
{
	struct error err = {0};
	char *text = NULL;

	if (pod_state_encode(pod, &text, &err))
		abort();
	return text;
}

static void check_round_trip(const struct pod *pod)
{
	struct error err = {0};
	struct pod **again;
	char *text = encoded(pod), *file, *text_again;
	size_t n;

	if (asprintf(&file, "{\"v\":1,\"pods\":[%s,%s]}", text, pod->record) < 0)
		abort();
	if (pod_state_decode(file, strlen(file), &again, &n, &err) || n != 2)
		abort();
	for (size_t i = 0; i < n; i++) {
		text_again = encoded(again[i]);
		if (strcmp(text, text_again) != 0)
			abort();
		free(text_again);
	}
	free_pods(again, n);
	free(file);
	free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct error err = {0};
	struct pod **pods = NULL;
	size_t n = 0;

	if (pod_state_decode((const char *)data, size, &pods, &n, &err)) {
		if (pods || !err.code || !err.text[0])
			abort();
		return 0;
	}
	for (size_t i = 0; i < n; i++)
		check_round_trip(pods[i]);
	free_pods(pods, n);
	return 0;
}
