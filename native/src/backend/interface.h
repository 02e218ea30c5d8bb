/* SPDX-License-Identifier: Apache-2.0 */
/* Facts about one network interface that the live backends share. */
#ifndef JARVIS_INTERFACE_H
#define JARVIS_INTERFACE_H

#include "jarvis_capture.h"

#include <pthread.h>

/* May this process open packet sockets? Fills reason when not. Any thread. */
bool interface_may_capture(char *reason, size_t size);

/* Index, state and hardware type (ARPHRD_*) through any socket. CAPTURE_OK; CAPTURE_ERR_NO_INTERFACE; CAPTURE_ERR_IO when it is
 * down. */
int interface_examine(int socket, const char *name, int *index, int *hardware, struct capture_error_info *error);

/* The same through a socket of its own. Any thread. */
int interface_look(const char *name, int *hardware, struct capture_error_info *error);

/* An ifindex as frames carry it: 65535 stands for all above. */
static inline uint16_t interface_index_of(int index) {
    return (uint16_t)(index < UINT16_MAX ? index : UINT16_MAX);
}

/* The state of the interface of this number, whatever its name is by now: GONE when there is none. Any thread. */
enum capture_interface_state interface_state(int index);

/* Says so in *error. Return BACKEND_DOWN and CAPTURE_ERR_IO. */
int interface_went_down(const char *name, struct capture_error_info *error);
int interface_is_gone(const char *name, struct capture_error_info *error);

/* Why the next read of a live capture failed, in words: gone, down, or errno's text. Returns BACKEND_DOWN or CAPTURE_ERR_IO. */
int interface_failed(const char *name, int index, int reason, struct capture_error_info *error);

/* Is the interface still there and up? CAPTURE_OK, BACKEND_DOWN or CAPTURE_ERR_IO. For backends whose library swallows the
 * socket's error. */
int interface_check(int socket, const char *name, int index, struct capture_error_info *error);

/* Has the kernel poll the driver for busy_poll_us (0: does nothing) before a reader of this socket sleeps, in preference to
 * interrupts and in larger batches where the kernel knows that. Needs CAP_NET_ADMIN. `name` is for the error. */
int interface_busy_poll(int socket, const char *name, uint32_t busy_poll_us, struct capture_error_info *error);

/* Lets no new frame into a packet socket; its ring stays. Cannot fail on a packet socket but for lack of memory, and then frames
 * go on coming: whoever drains must bound the time. */
void interface_shut(int socket);

/* Frames that the network card or its driver dropped on receipt (rx_dropped + rx_missed_errors of RTM_GETLINK) since the counter
 * was opened. Asked over netlink, not sysfs: /sys shows the network namespace it was mounted in, which need not be ours. */
struct nic_drops {
    int socket;
    int index;
    uint64_t base, last;
    pthread_mutex_t lock;
};

int nic_drops_open(struct nic_drops *drops, int index, struct capture_error_info *error);
/* Any thread. The last known figure when the interface is gone. */
uint64_t nic_drops_read(struct nic_drops *drops);
void nic_drops_close(struct nic_drops *drops);

#endif
