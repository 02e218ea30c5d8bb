/* SPDX-License-Identifier: Apache-2.0 */
/* Capture files made by the tests: bytes appended to a buffer in a chosen byte order, put into a memory file, read by the file
 * backend. */
#ifndef JARVIS_CAPTURE_BYTES_H
#define JARVIS_CAPTURE_BYTES_H

#include "backend/backend.h"
#include "check.h"

#include <sys/mman.h>
#include <unistd.h>

struct bytes {
    bool big_endian;
    size_t length;
    uint8_t data[1 << 18];
};

static inline void put(struct bytes *to, uint64_t value, unsigned size) {
    CHECK(to->length + size <= sizeof to->data);
    for (unsigned i = 0; i < size; i++)
        to->data[to->length++] = (uint8_t)(value >> 8 * (to->big_endian ? size - 1 - i : i));
}

static inline void put_bytes(struct bytes *to, const void *from, size_t length) {
    CHECK(to->length + length <= sizeof to->data);
    memcpy(to->data + to->length, from, length);
    to->length += length;
}

static inline void put_filler(struct bytes *to, size_t length) {
    for (size_t i = 0; i < length; i++)
        put(to, i & 0xff, 1);
}

/* A path that reads as these bytes, until forget_path. */
struct path {
    int file;
    char text[64];
};

static inline struct path path_of(const struct bytes *content) {
    struct path path = {.file = memfd_create("test capture", MFD_CLOEXEC)};
    CHECK(path.file >= 0);
    CHECK_EQUAL(content->length, write(path.file, content->data, content->length));
    snprintf(path.text, sizeof path.text, "/proc/self/fd/%d", path.file);
    return path;
}

static inline void forget_path(struct path *path) {
    close(path->file);
}

enum { SEEN_MAX = 4096 };

/* Everything that the file backend delivered: the frames without their data, and how it ended. */
struct seen {
    uint32_t count;
    int end; /* BACKEND_END or an error */
    struct frame frames[SEEN_MAX];
    uint8_t first_bytes[SEEN_MAX]; /* 0 where a frame is empty */
    struct capture_error_info error;
};

static inline int open_files(const char *const *paths, uint32_t count, uint32_t snaplen, void **state,
                             struct capture_error_info *error) {
    struct capture_config config = {.struct_size = sizeof config, .files = paths, .file_count = count, .snaplen = snaplen};
    return file_backend.open(&config, 0, 1, state, error);
}

static inline void read_everything(void *state, struct seen *seen) {
    struct frame_batch batch;
    memset(seen, 0, sizeof *seen);
    while ((seen->end = file_backend.read(state, &batch, 0, &seen->error)) > 0) {
        CHECK_EQUAL(seen->end, batch.count);
        for (uint32_t i = 0; i < batch.count; i++) {
            CHECK(seen->count < SEEN_MAX);
            seen->first_bytes[seen->count] = batch.frames[i].caplen ? batch.frames[i].data[0] : 0;
            seen->frames[seen->count++] = batch.frames[i];
        }
        file_backend.release(state);
    }
}

static inline void read_bytes(const struct bytes *content, struct seen *seen) {
    struct path path = path_of(content);
    const char *paths[] = {path.text};
    void *state;
    struct capture_error_info error = {0};
    int code = open_files(paths, 1, 0, &state, &error);
    if (code != CAPTURE_OK)
        fprintf(stderr, "%s\n", error.message);
    CHECK_EQUAL(CAPTURE_OK, code);
    read_everything(state, seen);
    file_backend.close(state);
    forget_path(&path);
}

static inline void refuse_bytes(const struct bytes *content, struct capture_error_info *error) {
    struct path path = path_of(content);
    const char *paths[] = {path.text};
    void *state;
    memset(error, 0, sizeof *error);
    CHECK_EQUAL(CAPTURE_ERR_FILE, open_files(paths, 1, 0, &state, error));
    CHECK_TEXT("files", error->field);
    CHECK(strstr(error->message, path.text) != NULL);
    forget_path(&path);
}

#endif
