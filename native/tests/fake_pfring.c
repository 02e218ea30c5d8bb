/* SPDX-License-Identifier: Apache-2.0 */
/* A fake libpfring.so, see fake_pfring.h. Thread-safe by one lock, unlike the real one. */
#include "fake_pfring.h"

#include <errno.h>
#include <pcap/pcap.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum { NOT_SUPPORTED = -7, NOT_ENABLED = -8, INVALID = -2, HEADER = 209, REENTRANT = 1 << 1, LONG_HEADER = 1 << 2 };

struct queued {
    struct queued *next;
    struct fake_pfring_packet packet;
    uint8_t bytes[];
};

struct ring {
    struct ring *next;
    char device[128];
    struct fake_pfring_view view;
    struct queued *first, **last, *lent;
    uint64_t received;
    int event; /* its count: packets in the queue */
    pcap_t *file;
};

/* What outlives the rings of a device. */
struct device {
    struct device *next;
    char name[128];
    struct fake_pfring_view view; /* of the newest ring, once it is closed */
    uint64_t dropped;
    int answer;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t given = PTHREAD_COND_INITIALIZER;
static struct ring *rings; /* newest first */
static struct device *devices;

static struct device *device_of(const char *name) {
    struct device *device = devices;
    while (device && strcmp(device->name, name) != 0)
        device = device->next;
    if (!device) {
        device = calloc(1, sizeof *device);
        snprintf(device->name, sizeof device->name, "%s", name);
        device->next = devices;
        devices = device;
    }
    return device;
}

static bool is_module(const struct ring *ring, const char *module) {
    return strncmp(ring->device, module, strlen(module)) == 0;
}

static bool is_kernel(const struct ring *ring) {
    return strchr(ring->device, ':') == NULL;
}

void *pfring_open(const char *device, uint32_t caplen, uint32_t flags);
void *pfring_open(const char *device, uint32_t caplen, uint32_t flags) {
    if (strcmp(device, "zc:locked") == 0 || strcmp(device, "zc:missing") == 0) {
        errno = device[3] == 'l' ? EPERM : ENODEV;
        return NULL;
    }
    struct ring *ring = calloc(1, sizeof *ring);
    char message[PCAP_ERRBUF_SIZE];
    snprintf(ring->device, sizeof ring->device, "%s", device);
    ring->view = (struct fake_pfring_view){.caplen = caplen, .flags = flags};
    ring->last = &ring->first;
    ring->event = eventfd(0, EFD_NONBLOCK | EFD_SEMAPHORE | EFD_CLOEXEC);
    if (is_module(ring, "pcap:"))
        ring->file = pcap_open_offline(device + strlen("pcap:"), message);
    pthread_mutex_lock(&lock);
    ring->next = rings;
    rings = ring;
    pthread_mutex_unlock(&lock);
    return ring;
}

int pfring_set_application_name(void *opaque, char *name);
int pfring_set_application_name(void *opaque, char *name) {
    struct ring *ring = opaque;
    snprintf(ring->view.application, sizeof ring->view.application, "%s", name);
    return 0;
}

int pfring_set_direction(void *opaque, int direction);
int pfring_set_direction(void *opaque, int direction) {
    struct ring *ring = opaque;
    ring->view.direction = direction;
    return is_kernel(ring) ? 0 : NOT_SUPPORTED;
}

int pfring_set_socket_mode(void *opaque, int mode);
int pfring_set_socket_mode(void *opaque, int mode) {
    ((struct ring *)opaque)->view.mode = mode;
    return 0;
}

int pfring_set_poll_watermark(void *opaque, uint16_t packets);
int pfring_set_poll_watermark(void *opaque, uint16_t packets) {
    ((struct ring *)opaque)->view.watermark = packets;
    return 0;
}

int pfring_set_cluster(void *opaque, unsigned id, int type);
int pfring_set_cluster(void *opaque, unsigned id, int type) {
    struct ring *ring = opaque;
    if (!is_kernel(ring))
        return NOT_SUPPORTED;
    pthread_mutex_lock(&lock);
    ring->view.cluster = id;
    ring->view.cluster_type = type;
    pthread_mutex_unlock(&lock);
    return 0;
}

int pfring_enable_ring(void *opaque);
int pfring_enable_ring(void *opaque) {
    struct ring *ring = opaque;
    if (strcmp(ring->device, "zc:dead") == 0)
        return -1;
    pthread_mutex_lock(&lock);
    ring->view.enabled = true;
    pthread_mutex_unlock(&lock);
    return 0;
}

static void fill_header(const struct ring *ring, uint8_t *header, const struct fake_pfring_packet *packet) {
    memset(header, 0, HEADER);
    memcpy(header, &packet->seconds, 8);
    memcpy(header + 8, &packet->microseconds, 8);
    memcpy(header + 16, &packet->caplen, 4);
    memcpy(header + 20, &packet->length, 4);
    if (!(ring->view.flags & LONG_HEADER))
        return;
    memcpy(header + 24, &packet->timestamp_ns, 8);
    memcpy(header + 40, &packet->if_index, 4);
}

static int next_of_file(struct ring *ring, unsigned char **buffer, uint8_t *header) {
    struct pcap_pkthdr *found;
    const unsigned char *bytes;
    int result = pcap_next_ex(ring->file, &found, &bytes);
    if (result != 1)
        return result;
    *buffer = (unsigned char *)(uintptr_t)bytes;
    fill_header(
        ring, header,
        &(struct fake_pfring_packet){
            .caplen = found->caplen, .length = found->len, .seconds = found->ts.tv_sec, .microseconds = found->ts.tv_usec});
    return 1;
}

/* Under the lock. What was lent last is no longer anybody's. */
static void take_back(struct ring *ring) {
    if (ring->lent)
        memset(ring->lent->bytes, 0xdd, ring->lent->packet.caplen);
    free(ring->lent);
    ring->lent = NULL;
}

static int next_of_queue(struct ring *ring, unsigned char **buffer, uint8_t *header) {
    uint64_t one;
    take_back(ring);
    if (!ring->first) {
        if (is_module(ring, "pcap:")) {
            fprintf(stderr, "fake libpfring: recv of %s would wait for ever\n", ring->device);
            abort();
        }
        return device_of(ring->device)->answer;
    }
    ring->lent = ring->first;
    ring->first = ring->lent->next;
    if (!ring->first)
        ring->last = &ring->first;
    if (read(ring->event, &one, sizeof one) != sizeof one)
        abort();
    fill_header(ring, header, &ring->lent->packet);
    *buffer = ring->lent->bytes;
    ring->received++;
    return 1;
}

int pfring_recv(void *opaque, unsigned char **buffer, unsigned buffer_len, void *header, uint8_t wait);
int pfring_recv(void *opaque, unsigned char **buffer, unsigned buffer_len, void *header, uint8_t wait) {
    struct ring *ring = opaque;
    if (buffer_len || wait || (ring->view.flags & REENTRANT)) /* the fake has zero copy without waiting; it excludes the flag */
        return INVALID;
    pthread_mutex_lock(&lock);
    int result = !ring->view.enabled ? NOT_ENABLED
                 : ring->file        ? next_of_file(ring, buffer, header)
                                     : next_of_queue(ring, buffer, header);
    pthread_mutex_unlock(&lock);
    return result;
}

int pfring_stats(void *opaque, uint64_t *counters);
int pfring_stats(void *opaque, uint64_t *counters) {
    struct ring *ring = opaque;
    if (ring->file)
        return -1;
    pthread_mutex_lock(&lock);
    counters[0] = ring->received;
    counters[1] = device_of(ring->device)->dropped;
    counters[2] = 0;
    pthread_mutex_unlock(&lock);
    return 0;
}

int pfring_get_selectable_fd(void *opaque);
int pfring_get_selectable_fd(void *opaque) {
    return ((struct ring *)opaque)->event;
}

#ifndef FAKE_WITHOUT_POLL
int pfring_poll(void *opaque, unsigned duration);
int pfring_poll(void *opaque, unsigned duration) {
    struct ring *ring = opaque;
    if (is_module(ring, "blind:"))
        return NOT_SUPPORTED;
    if (is_module(ring, "pcap:") && duration) {
        fprintf(stderr, "fake libpfring: poll of %s would wait for %u s\n", ring->device, duration);
        abort();
    }
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    uint64_t nanoseconds = (uint64_t)until.tv_nsec + duration * UINT64_C(1000000);
    until.tv_sec += (time_t)(nanoseconds / 1000000000);
    until.tv_nsec = (long)(nanoseconds % 1000000000);
    pthread_mutex_lock(&lock);
    while (!ring->file && !ring->first && duration && pthread_cond_timedwait(&given, &lock, &until) == 0)
        continue;
    int result = ring->file || ring->first;
    pthread_mutex_unlock(&lock);
    return result;
}
#endif

void pfring_breakloop(void *opaque);
void pfring_breakloop(void *opaque) {
    pthread_mutex_lock(&lock);
    ((struct ring *)opaque)->view.broken = true;
    pthread_mutex_unlock(&lock);
}

void pfring_close(void *opaque);
void pfring_close(void *opaque) {
    struct ring *ring = opaque, **link = &rings;
    pthread_mutex_lock(&lock);
    while (*link != ring)
        link = &(*link)->next;
    *link = ring->next;
    device_of(ring->device)->view = ring->view;
    take_back(ring);
    while ((ring->lent = ring->first)) {
        ring->first = ring->lent->next;
        free(ring->lent);
    }
    pthread_mutex_unlock(&lock);
    if (ring->file)
        pcap_close(ring->file);
    close(ring->event);
    free(ring);
}

/* Under the lock. */
static void enqueue(struct ring *ring, const struct fake_pfring_packet *packet) {
    struct queued *queued = malloc(sizeof *queued + packet->caplen);
    const uint64_t one = 1;
    queued->next = NULL;
    queued->packet = *packet;
    memcpy(queued->bytes, packet->bytes, packet->caplen);
    *ring->last = queued;
    ring->last = &queued->next;
    if (write(ring->event, &one, sizeof one) != sizeof one)
        abort();
}

static bool takes(const struct ring *ring, const char *device, unsigned cluster) {
    return ring->view.enabled && ring->view.cluster == cluster && strcmp(ring->device, device) == 0;
}

static void give(const char *device, const struct fake_pfring_packet *packet) {
    const uint8_t *bytes = packet->bytes;
    unsigned hash = 0, members = 0, cluster = 0;
    for (uint32_t i = 26; i < 34 && i < packet->caplen; i++)
        hash += bytes[i];
    pthread_mutex_lock(&lock);
    for (struct ring *ring = rings; ring; ring = ring->next) {
        if (takes(ring, device, 0))
            enqueue(ring, packet);
        else if (ring->view.cluster && strcmp(ring->device, device) == 0)
            cluster = ring->view.cluster;
    }
    for (struct ring *ring = rings; ring && cluster; ring = ring->next)
        members += takes(ring, device, cluster);
    unsigned chosen = members ? hash % members : 0;
    for (struct ring *ring = rings; ring && members; ring = ring->next)
        if (takes(ring, device, cluster) && chosen-- == 0)
            enqueue(ring, packet);
    pthread_cond_broadcast(&given);
    pthread_mutex_unlock(&lock);
}

static void set_dropped(const char *device, uint64_t dropped) {
    pthread_mutex_lock(&lock);
    device_of(device)->dropped = dropped;
    pthread_mutex_unlock(&lock);
}

static void set_answer(const char *device, int result) {
    pthread_mutex_lock(&lock);
    device_of(device)->answer = result;
    pthread_mutex_unlock(&lock);
}

static struct fake_pfring_view look(const char *device) {
    const struct ring *newest = NULL;
    unsigned open = 0;
    pthread_mutex_lock(&lock);
    for (struct ring *ring = rings; ring; ring = ring->next) {
        if (strcmp(ring->device, device) != 0)
            continue;
        newest = newest ? newest : ring;
        open++;
    }
    struct fake_pfring_view view = newest ? newest->view : device_of(device)->view;
    view.open = open;
    pthread_mutex_unlock(&lock);
    return view;
}

extern const struct fake_pfring fake_pfring;
const struct fake_pfring fake_pfring = {.give = give, .set_dropped = set_dropped, .set_answer = set_answer, .look = look};
