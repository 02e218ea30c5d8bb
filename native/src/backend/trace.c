/* SPDX-License-Identifier: Apache-2.0 */
/* Capture files: open, map, tell the format by its magic. */
#include "trace.h"

#include "error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ /* Linux 5.14; glibc 2.35 */
#define MADV_POPULATE_READ 22
#endif

/* Formats that people hand us and that are not read here, with what to do about it. */
static const struct {
    const char *magic;
    size_t length;
    const char *advice;
} foreign[] = {
    {"\x1f\x8b", 2, "is compressed with gzip: decompress it first (gunzip)"},
    {"\x28\xb5\x2f\xfd", 4, "is compressed with zstd: decompress it first (unzstd)"},
    {"\xfd"
     "7zXZ",
     5, "is compressed with xz: decompress it first (unxz)"},
    {"\x04\x22\x4d\x18", 4, "is compressed with lz4: decompress it first (unlz4)"},
    {"BZh", 3, "is compressed with bzip2: decompress it first (bunzip2)"},
    {"snoop\0\0\0", 8, "is a snoop capture: convert it first (editcap -F pcap)"},
};

static int refuse_foreign(const struct trace *trace, struct capture_error_info *error) {
    for (size_t i = 0; i < sizeof foreign / sizeof foreign[0]; i++)
        if (trace->size >= foreign[i].length && memcmp(trace->base, foreign[i].magic, foreign[i].length) == 0)
            return capture_fail(error, CAPTURE_ERR_FILE, "files", "%s %s", trace->path, foreign[i].advice);
    return capture_fail(error, CAPTURE_ERR_FILE, "files",
                        "%s is not a capture file: it begins %02x%02x%02x%02x, accepted are pcap and pcapng", trace->path,
                        trace->base[0], trace->base[1], trace->base[2], trace->base[3]);
}

static int map_file(struct trace *trace, struct capture_error_info *error) {
    struct stat status;
    if (fstat(trace->file, &status) != 0)
        return capture_fail(error, CAPTURE_ERR_IO, "files", "%s cannot be examined: %s", trace->path, strerror(errno));
    if (!S_ISREG(status.st_mode))
        return capture_fail(error, CAPTURE_ERR_FILE, "files", "%s is not a regular file: it cannot be mapped", trace->path);
    if (status.st_size < 4)
        return capture_fail(error, CAPTURE_ERR_FILE, "files", "%s is %s: accepted are pcap and pcapng files", trace->path,
                            status.st_size == 0 ? "empty" : "shorter than a file header");
    void *base = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, trace->file, 0);
    if (base == MAP_FAILED)
        return capture_fail(error, CAPTURE_ERR_IO, "files", "%s cannot be mapped: %s", trace->path, strerror(errno));
    trace->base = base;
    trace->size = (uint64_t)status.st_size;
    (void)madvise(base, trace->size, MADV_SEQUENTIAL); /* only a hint: reading works without */
    return CAPTURE_OK;
}

int trace_begin(struct trace *trace, struct capture_error_info *error) {
    uint32_t magic;
    memcpy(&magic, trace->base, sizeof magic);
    switch (magic) {
    case 0x0a0d0d0a:
        return pcapng_begin(trace, error);
    case 0xa1b2c3d4:
    case 0xa1b23c4d:
    case 0xa1b2cd34:
    case 0xd4c3b2a1:
    case 0x4d3cb2a1:
    case 0x34cdb2a1:
        return pcap_file_begin(trace, error);
    default:
        return refuse_foreign(trace, error);
    }
}

int trace_open(struct trace *trace, const char *path, uint32_t snaplen, struct capture_error_info *error) {
    *trace = (struct trace){.path = path, .snaplen = snaplen};
    trace->file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* not waiting for the writer of a FIFO: it is refused below */
    if (trace->file < 0)
        return capture_fail(error, errno == EACCES ? CAPTURE_ERR_PERMISSION : CAPTURE_ERR_FILE, "files",
                            "%s cannot be opened: %s", path, strerror(errno));
    int code = map_file(trace, error);
    if (code == CAPTURE_OK)
        code = trace_begin(trace, error);
    if (code != CAPTURE_OK)
        trace_close(trace);
    return code;
}

void trace_close(struct trace *trace) {
    if (trace->base)
        munmap((void *)(uintptr_t)trace->base, trace->size);
    if (trace->file >= 0)
        close(trace->file);
    free(trace->interfaces);
    *trace = (struct trace){.file = -1};
}

void trace_drop_before(struct trace *trace, uint64_t start) {
    if (start <= trace->dropped_end)
        return;
    (void)madvise((void *)(uintptr_t)(trace->base + trace->dropped_end), start - trace->dropped_end, MADV_DONTNEED);
    trace->dropped_end = start;
}

int trace_advance(struct trace *trace, uint64_t window, struct capture_error_info *error) {
    struct stat status;
    if (fstat(trace->file, &status) != 0 || (uint64_t)status.st_size < trace->size)
        return capture_fail(error, CAPTURE_ERR_IO, "files", "%s was cut to %lld bytes while it was read", trace->path,
                            (long long)status.st_size);
    while (trace->window_end <= trace->offset)
        trace->window_end += window;
    uint64_t start = trace->offset & ~(window - 1);
    uint64_t end = trace->window_end < trace->size ? trace->window_end : trace->size;
    int result = madvise((void *)(uintptr_t)(trace->base + start), end - start, MADV_POPULATE_READ);
    if (result != 0 &&
        (errno == EFAULT || errno == EIO)) /* EINVAL: a kernel before 5.14, which faults pages in as they are read */
        return capture_fail(error, CAPTURE_ERR_IO, "files", "%s cannot be read at byte %llu: it was cut, or its disk fails",
                            trace->path, (unsigned long long)start);
    return CAPTURE_OK;
}

struct trace_interface *trace_add_interface(struct trace *trace) {
    if (trace->interface_count == trace->interface_capacity) {
        uint32_t capacity = trace->interface_capacity ? 2 * trace->interface_capacity : 4;
        void *grown = realloc(trace->interfaces, capacity * sizeof *trace->interfaces);
        if (!grown)
            return NULL;
        trace->interfaces = grown;
        trace->interface_capacity = capacity;
    }
    struct trace_interface *interface = &trace->interfaces[trace->interface_count++];
    *interface = (struct trace_interface){0};
    return interface;
}

void trace_damaged(struct trace *trace, struct frame_batch *batch, struct capture_error_info *error, const char *what) {
    capture_fail(error, CAPTURE_ERR_FILE, "files", "%s is damaged at byte %llu: %s", trace->path,
                 (unsigned long long)trace->offset, what);
    trace_append(trace, batch, trace->base, trace->last_ts_ns, 0, 0, 0, 1);
    batch->frames[batch->count - 1].flags = FRAME_DAMAGED;
    trace->offset = trace->size;
}
