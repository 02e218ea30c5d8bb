/* SPDX-License-Identifier: Apache-2.0 */
/* DPDK's log: the last few kilobytes are kept, for the messages of our own errors. */
#include "eal_log.h"

#include "eal.h"

#include <pthread.h>
#include <string.h>
#include <sys/types.h>

enum { KEPT = 4096 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char kept[KEPT]; /* a circle */
static uint64_t written;

static ssize_t keep(void *cookie, const char *text, size_t size) {
    (void)cookie;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < size; i++)
        kept[written++ % KEPT] = text[i];
    pthread_mutex_unlock(&lock);
    return (ssize_t)size;
}

FILE *eal_log_open(void) {
    FILE *stream = fopencookie(NULL, "w", (cookie_io_functions_t){.write = keep});
    if (stream)
        setvbuf(stream, NULL, _IOLBF, 1024);
    return stream;
}

uint64_t eal_log_mark(void) {
    pthread_mutex_lock(&lock);
    uint64_t mark = written;
    pthread_mutex_unlock(&lock);
    return mark;
}

void eal_log_since(uint64_t mark, char *text, size_t size) {
    static const char lead[] = "; DPDK says: ";
    pthread_mutex_lock(&lock);
    uint64_t room = size - sizeof lead, from = written > KEPT ? written - KEPT : 0;
    from = from > mark ? from : mark;
    bool cut = written - from > room;
    from = cut ? written - room : from;
    while (cut && from < written && kept[from++ % KEPT] != '\n') /* whole lines only */
        continue;
    size_t length = 0;
    memcpy(text, lead, sizeof lead - 1);
    char *out = text + sizeof lead - 1;
    for (; from < written && length + 2 < room; from++) {
        char byte = kept[from % KEPT];
        bool begins = length == 0 || out[length - 1] == ' ';
        if (byte == '\n' && !begins) { /* lines become clauses */
            out[length++] = ';';
            out[length++] = ' ';
        } else if ((unsigned char)byte > ' ' || (byte == ' ' && !begins)) {
            out[length++] = byte;
        }
    }
    pthread_mutex_unlock(&lock);
    while (length > 0 && (out[length - 1] == ';' || out[length - 1] == ' '))
        length--;
    out[length] = '\0';
    if (length == 0)
        text[0] = '\0';
}
