/* SPDX-License-Identifier: Apache-2.0 */
#include "flow/timer_wheel.h"

#include <string.h>

#include "flow/memory.h"

#define WHEEL_HEAD 0x80000000u

bool timer_wheel_init(struct timer_wheel *wheel, uint32_t capacity) {
    wheel->capacity = capacity;
    wheel->links = memory_map((size_t)capacity * sizeof(struct wheel_link));
    timer_wheel_reset(wheel, 0);
    return wheel->links != NULL;
}

void timer_wheel_destroy(struct timer_wheel *wheel) {
    memory_unmap(wheel->links, (size_t)wheel->capacity * sizeof(struct wheel_link));
    wheel->links = NULL;
}

void timer_wheel_reset(struct timer_wheel *wheel, uint64_t now_ns) {
    memset(wheel->heads, 0xff, sizeof(wheel->heads));
    wheel->tick = now_ns >> WHEEL_TICK_SHIFT;
}

void timer_wheel_insert(struct timer_wheel *wheel, uint32_t entry, uint64_t deadline_ns) {
    uint64_t tick = (deadline_ns >> WHEEL_TICK_SHIFT) + 1; /* when this slot comes, the deadline has passed */
    if (tick <= wheel->tick)
        tick = wheel->tick + 1;
    if (tick - wheel->tick >= WHEEL_SLOTS)
        tick = wheel->tick + WHEEL_SLOTS - 1;
    uint32_t slot = tick % WHEEL_SLOTS;
    struct wheel_link *link = &wheel->links[entry];
    link->next = wheel->heads[slot];
    link->previous = WHEEL_HEAD | slot;
    if (link->next != WHEEL_NONE)
        wheel->links[link->next].previous = entry;
    wheel->heads[slot] = entry;
}

void timer_wheel_remove(struct timer_wheel *wheel, uint32_t entry) {
    struct wheel_link link = wheel->links[entry];
    if (link.previous & WHEEL_HEAD)
        wheel->heads[link.previous & ~WHEEL_HEAD] = link.next;
    else
        wheel->links[link.previous].next = link.next;
    if (link.next != WHEEL_NONE)
        wheel->links[link.next].previous = link.previous;
}

uint32_t timer_wheel_pop(struct timer_wheel *wheel, uint64_t now_ns) {
    uint64_t target = now_ns >> WHEEL_TICK_SHIFT;
    for (;;) {
        uint32_t entry = wheel->heads[wheel->tick % WHEEL_SLOTS];
        if (entry != WHEEL_NONE) {
            timer_wheel_remove(wheel, entry);
            return entry;
        }
        if (wheel->tick >= target)
            return WHEEL_NONE;
        if (target - wheel->tick > WHEEL_SLOTS)
            wheel->tick = target - WHEEL_SLOTS; /* every slot is passed once */
        wheel->tick++;
    }
}
