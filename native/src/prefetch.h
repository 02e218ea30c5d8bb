/* SPDX-License-Identifier: Apache-2.0 */
/* Asking for memory before it is needed. */
#ifndef JARVIS_PREFETCH_H
#define JARVIS_PREFETCH_H

/* Asks for the cache line of `address`, which need not be mapped. The empty statement is the point: to the compiler a function
 * that only prefetches has no effect, and GCC 12 removes its calls. */
static inline void prefetch_line(const void *address) {
    __builtin_prefetch(address);
    __asm__ volatile("" : : "r"(address));
}

#endif
