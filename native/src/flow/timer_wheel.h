/* SPDX-License-Identifier: Apache-2.0 */
/* One wheel of slots driven by packet time. A flow sits in the slot of the earliest instant it could end at; when the slot comes,
 * the caller looks at the flow's true deadline and puts it back if that is later. So a packet costs the wheel nothing. */
#ifndef JARVIS_TIMER_WHEEL_H
#define JARVIS_TIMER_WHEEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    WHEEL_SLOTS = 4096,
    WHEEL_TICK_SHIFT = 27, /* a tick is 2^27 ns, 134 ms; the horizon is 9 min, later deadlines are looked at once per turn */
};
#define WHEEL_NONE UINT32_MAX

struct wheel_link {
    uint32_t next;
    uint32_t previous; /* WHEEL_HEAD | slot for the first of a slot */
};

struct timer_wheel {
    struct wheel_link *links; /* one an entry */
    uint32_t capacity;
    uint64_t tick; /* its slot is being emptied; earlier ones are empty of due entries */
    uint32_t heads[WHEEL_SLOTS];
};

/* capacity < 2^31. False: no memory. */
bool timer_wheel_init(struct timer_wheel *wheel, uint32_t capacity);
void timer_wheel_destroy(struct timer_wheel *wheel);

/* Takes every entry off at once and sets the wheel's time. The caller inserts again what lives. */
void timer_wheel_reset(struct timer_wheel *wheel, uint64_t now_ns);

/* A deadline that has passed comes at the next tick; UINT64_MAX (never) is looked at once per turn. */
void timer_wheel_insert(struct timer_wheel *wheel, uint32_t entry, uint64_t deadline_ns);
void timer_wheel_remove(struct timer_wheel *wheel, uint32_t entry);

/* Takes off and returns the next entry whose slot has come by now_ns; WHEEL_NONE when there is none. Time never goes back here.
 */
uint32_t timer_wheel_pop(struct timer_wheel *wheel, uint64_t now_ns);

#endif
