/* SPDX-License-Identifier: Apache-2.0 */
/* The table of backends: those built in, those that modules added, and those that are only known by name. */
#ifndef JARVIS_REGISTRY_H
#define JARVIS_REGISTRY_H

#include "backend.h"

enum { BACKEND_ROWS_MAX = 16 };

/* One backend, or the note that there is none and why. */
struct backend_row {
    const struct capture_backend_ops *ops; /* NULL: not here; the three strings below say what and why */
    char name[16], description[96], reason[160];
};

/* Row `at`, best live backend first, notes last; NULL after the last. A row once seen stays valid and unchanged. Any thread. */
const struct backend_row *registry_row(uint32_t at);

/* NULL: no such name. Any thread. */
const struct backend_row *registry_find(const char *name);

/* No module can be added from now on. Any thread. */
void registry_close(void);

#endif
