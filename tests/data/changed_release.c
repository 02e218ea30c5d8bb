// SPDX-License-Identifier: Apache-2.0
// Another release of the library, for tests: the real one is loaded with it, and what it says or does is changed on the way.
//   -DREAL="..."       path of the real library, which this one is linked with
//   -DVERSION="9.9.9"  what capture_version says
//   -DFATE=abort       in every process; or FATE_OF_RUN=abort|hang: not in a trial
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void hang(void)
{
	for (volatile unsigned turn = 0;; turn++) {
	}
}

static int is_trial(void)
{
	char line[4096] = {0};
	FILE *file = fopen("/proc/self/cmdline", "r");
	if (file == NULL) {
		return 0;
	}
	size_t length = fread(line, 1, sizeof(line) - 1, file);
	fclose(file);
	for (size_t at = 0; at < length; at += strlen(line + at) + 1) {
		if (strcmp(line + at, "jarvis_agent.trial") == 0 || strstr(line + at, "jarvis_agent/trial.py") != NULL) {
			return 1;
		}
	}
	return 0;
}

__attribute__((constructor)) static void change(void)
{
	(void)hang;
	(void)is_trial;
#ifdef FATE
	FATE();
#endif
#ifdef FATE_OF_RUN
	if (!is_trial()) {
		FATE_OF_RUN();
	}
#endif
}

#ifdef VERSION
const char *capture_version(void)
{
	return VERSION;
}
#endif
