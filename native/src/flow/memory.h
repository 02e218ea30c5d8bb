/* SPDX-License-Identifier: Apache-2.0 */
/* Large zeroed memory for tables and logs: anonymous mappings, on huge pages where the kernel gives them. */
#ifndef JARVIS_MEMORY_H
#define JARVIS_MEMORY_H

#include <stddef.h>

/* NULL when the mapping is refused. Pages are touched by whoever writes first, so a worker's memory is local to its NUMA node. */
void *memory_map(size_t bytes);
void memory_unmap(void *memory, size_t bytes);

#endif
