/* SPDX-License-Identifier: Apache-2.0 */
/* The file backend on classic pcap files. */
#include "capture_bytes.h"

#include <fcntl.h>
#include <sys/stat.h>

static struct bytes content;
static struct seen seen;

static void begin(bool big_endian, uint32_t magic, uint32_t link_type) {
    content.length = 0;
    content.big_endian = big_endian;
    put(&content, magic, 4);
    put(&content, 2, 2);
    put(&content, 4, 2);
    put(&content, 0, 8);
    put(&content, 65535, 4);
    put(&content, link_type, 4);
}

static void record(uint32_t seconds, uint32_t fraction, uint32_t caplen, uint32_t wirelen) {
    put(&content, seconds, 4);
    put(&content, fraction, 4);
    put(&content, caplen, 4);
    put(&content, wirelen, 4);
}

static void frame(uint32_t seconds, uint32_t fraction, uint32_t caplen, uint32_t wirelen, uint8_t first) {
    record(seconds, fraction, caplen, wirelen);
    put(&content, first, 1);
    put_filler(&content, caplen - 1);
}

static void check_two_frames(bool big_endian, uint32_t magic, uint64_t ns_per_fraction) {
    begin(big_endian, magic, 1);
    frame(1700000000, 123456, 60, 60, 0xaa);
    frame(1700000001, 7, 64, 1500, 0xbb);
    read_bytes(&content, &seen);
    CHECK_EQUAL(BACKEND_END, seen.end);
    CHECK_EQUAL(2, seen.count);
    CHECK_EQUAL(1700000000000000000 + 123456 * ns_per_fraction, seen.frames[0].ts_ns);
    CHECK_EQUAL(1700000001000000000 + 7 * ns_per_fraction, seen.frames[1].ts_ns);
    CHECK_EQUAL(60, seen.frames[0].caplen);
    CHECK_EQUAL(0, seen.frames[0].flags);
    CHECK_EQUAL(64, seen.frames[1].caplen);
    CHECK_EQUAL(1500, seen.frames[1].wirelen);
    CHECK_EQUAL(FRAME_TRUNCATED, seen.frames[1].flags);
    CHECK_EQUAL(1, seen.frames[1].link_type);
    CHECK_EQUAL(1, seen.frames[1].interface_index);
    CHECK_EQUAL(0xaa, seen.first_bytes[0]);
    CHECK_EQUAL(0xbb, seen.first_bytes[1]);
}

static void both_byte_orders_and_both_resolutions_are_read(void) {
    check_two_frames(false, 0xa1b2c3d4, 1000);
    check_two_frames(true, 0xa1b2c3d4, 1000);
    check_two_frames(false, 0xa1b23c4d, 1);
    check_two_frames(true, 0xa1b23c4d, 1);
}

static void the_longer_record_header_of_modified_files_is_read(void) {
    for (int big_endian = 0; big_endian < 2; big_endian++) {
        begin(big_endian, 0xa1b2cd34, 1);
        for (int i = 0; i < 2; i++) {
            record(5, 6, 10, 10);
            put(&content, 3, 4); /* ifindex */
            put(&content, 0, 4); /* protocol, packet type, padding */
            put(&content, 0xc0u + (unsigned)i, 1);
            put_filler(&content, 9);
        }
        read_bytes(&content, &seen);
        CHECK_EQUAL(2, seen.count);
        CHECK_EQUAL(0xc1, seen.first_bytes[1]);
        CHECK_EQUAL(5000006000, seen.frames[1].ts_ns);
    }
}

static void files_before_version_2_3_have_their_lengths_reversed(void) {
    begin(true, 0xa1b2c3d4, 1);
    content.data[7] = 1;
    record(1, 0, 100, 20); /* original length first */
    put_filler(&content, 20);
    read_bytes(&content, &seen);
    CHECK_EQUAL(1, seen.count);
    CHECK_EQUAL(20, seen.frames[0].caplen);
    CHECK_EQUAL(100, seen.frames[0].wirelen);
}

static void raw_ip_is_one_link_type_whatever_number_the_writer_used(void) {
    const uint32_t numbers[] = {12, 14, 101, 0xf0000000 | 101}; /* the last: with a frame check sequence length above */
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        begin(false, 0xa1b2c3d4, numbers[i]);
        frame(1, 1, 20, 20, 0x45);
        read_bytes(&content, &seen);
        CHECK_EQUAL(101, seen.frames[0].link_type);
    }
}

static void a_file_without_records_is_empty_not_damaged(void) {
    begin(false, 0xa1b2c3d4, 1);
    read_bytes(&content, &seen);
    CHECK_EQUAL(0, seen.count);
    CHECK_EQUAL(BACKEND_END, seen.end);
}

static void check_damage_after_three(const char *cause) {
    read_bytes(&content, &seen);
    CHECK_EQUAL(BACKEND_END, seen.end);
    CHECK_EQUAL(4, seen.count);
    for (int i = 0; i < 3; i++)
        CHECK_EQUAL(0, seen.frames[i].flags);
    CHECK_EQUAL(FRAME_DAMAGED, seen.frames[3].flags);
    CHECK_EQUAL(0, seen.frames[3].caplen);
    CHECK_EQUAL(seen.frames[2].ts_ns, seen.frames[3].ts_ns);
    CHECK_EQUAL(CAPTURE_ERR_FILE, seen.error.code);
    CHECK(strstr(seen.error.message, cause) != NULL);
    CHECK(strstr(seen.error.message, "at byte 252") != NULL);
}

static void begin_three(void) {
    begin(false, 0xa1b2c3d4, 1);
    for (uint32_t i = 0; i < 3; i++)
        frame(10 + i, 0, 60, 60, 1);
}

static void a_cut_record_is_one_damaged_frame_after_the_whole_ones(void) {
    begin_three();
    frame(20, 0, 100, 100, 1);
    content.length -= 1;
    check_damage_after_three("the file ends inside a record");
}

static void a_cut_record_header_is_one_damaged_frame(void) {
    for (size_t kept = 1; kept < 16; kept++) {
        begin_three();
        put_filler(&content, kept);
        check_damage_after_three("the file ends inside a record header");
    }
}

static void an_insane_record_length_is_one_damaged_frame_and_the_end(void) {
    begin_three();
    record(20, 0, 0xfffffff0, 60);
    put_filler(&content, 200);
    check_damage_after_three("more bytes than a frame");
}

static void frames_longer_than_snaplen_are_cut_and_marked(void) {
    begin(false, 0xa1b2c3d4, 1);
    frame(1, 0, 64, 64, 1);
    frame(1, 0, 65, 65, 1);
    struct path path = path_of(&content);
    const char *paths[] = {path.text};
    void *state;
    CHECK_EQUAL(CAPTURE_OK, open_files(paths, 1, 64, &state, NULL));
    read_everything(state, &seen);
    file_backend.close(state);
    forget_path(&path);
    CHECK_EQUAL(0, seen.frames[0].flags);
    CHECK_EQUAL(FRAME_TRUNCATED, seen.frames[1].flags);
    CHECK_EQUAL(64, seen.frames[1].caplen);
    CHECK_EQUAL(65, seen.frames[1].wirelen);
}

static void a_captured_length_above_the_original_is_believed(void) {
    begin(false, 0xa1b2c3d4, 1);
    frame(1, 0, 80, 10, 1);
    read_bytes(&content, &seen);
    CHECK_EQUAL(80, seen.frames[0].wirelen);
    CHECK_EQUAL(0, seen.frames[0].flags);
}

static void several_files_are_one_trace_in_the_order_given(void) {
    struct path paths[3];
    const char *names[3];
    for (uint32_t i = 0; i < 3; i++) {
        begin(i == 1, 0xa1b2c3d4, 1);
        for (uint32_t j = 0; j < 100; j++)
            frame(1000 * (3 - i) + j, 0, 60, 60, (uint8_t)i);
        if (i == 1)
            content.length -= 10; /* damage in the middle file does not hide the third */
        paths[i] = path_of(&content);
        names[i] = paths[i].text;
    }
    void *state;
    CHECK_EQUAL(CAPTURE_OK, open_files(names, 3, 0, &state, NULL));
    read_everything(state, &seen);
    file_backend.close(state);
    CHECK_EQUAL(300, seen.count);
    CHECK_EQUAL(3000000000000, seen.frames[0].ts_ns);
    CHECK_EQUAL(FRAME_DAMAGED, seen.frames[199].flags);
    CHECK_EQUAL(1000000000000, seen.frames[200].ts_ns);
    CHECK_EQUAL(2, seen.first_bytes[299]);
    for (int i = 0; i < 3; i++)
        forget_path(&paths[i]);
}

static void garbage_file_headers_are_refused_by_name(void) {
    struct capture_error_info error;
    content.length = 0;
    refuse_bytes(&content, &error);
    CHECK(strstr(error.message, "is empty") != NULL);
    put_bytes(&content, "abc", 3);
    refuse_bytes(&content, &error);
    CHECK(strstr(error.message, "shorter than a file header") != NULL);
    put_bytes(&content, "defghijklmnopqrstuvwxyz", 23);
    refuse_bytes(&content, &error);
    CHECK(strstr(error.message, "61626364, accepted are pcap and pcapng") != NULL);
    begin(false, 0xa1b2c3d4, 1);
    content.length = 23;
    refuse_bytes(&content, &error);
    CHECK(strstr(error.message, "cut inside its file header: 23 bytes of 24") != NULL);
    begin(false, 0xa1b2c3d4, 1);
    content.data[4] = 9;
    refuse_bytes(&content, &error);
    CHECK(strstr(error.message, "pcap version 9.4: accepted is 2.x") != NULL);
}

static void compressed_files_are_refused_with_what_to_do(void) {
    struct capture_error_info error;
    content.length = 0;
    put_bytes(&content, "\x1f\x8b\x08\x00....", 8);
    refuse_bytes(&content, &error);
    CHECK(strstr(error.message, "gzip: decompress it first") != NULL);
    content.length = 0;
    put_bytes(&content, "\x28\xb5\x2f\xfd....", 8);
    refuse_bytes(&content, &error);
    CHECK(strstr(error.message, "zstd: decompress it first") != NULL);
}

static void a_bad_file_among_good_ones_is_refused_before_anything_is_read(void) {
    begin_three();
    struct path good = path_of(&content);
    const char *paths[] = {good.text, "/nonexistent/capture.pcap"};
    struct capture_error_info error = {0};
    void *state;
    CHECK_EQUAL(CAPTURE_ERR_FILE, open_files(paths, 2, 0, &state, &error));
    CHECK_TEXT("/nonexistent/capture.pcap cannot be opened: No such file or directory", error.message);
    paths[1] = "/dev/null";
    CHECK_EQUAL(CAPTURE_ERR_FILE, open_files(paths, 2, 0, &state, &error));
    CHECK(strstr(error.message, "not a regular file") != NULL);
    forget_path(&good);
}

static void a_fifo_is_refused_without_waiting_for_its_writer(void) {
    char directory[] = "/tmp/jarvis-test-XXXXXX", name[64];
    CHECK(mkdtemp(directory) != NULL);
    snprintf(name, sizeof name, "%s/fifo", directory);
    CHECK_EQUAL(0, mkfifo(name, 0600));
    const char *paths[] = {name};
    struct capture_error_info error = {0};
    void *state;
    int code = open_files(paths, 1, 0, &state, &error);
    unlink(name);
    rmdir(directory);
    CHECK_EQUAL(CAPTURE_ERR_FILE, code);
    CHECK(strstr(error.message, "not a regular file") != NULL);
}

static void a_file_that_is_cut_before_it_is_read_gives_an_error_not_a_signal(void) {
    begin(false, 0xa1b2c3d4, 1);
    for (uint32_t i = 0; i < 200; i++)
        frame(i, 0, 1000, 1000, 1);
    struct path path = path_of(&content);
    const char *paths[] = {path.text};
    void *state;
    struct frame_batch batch;
    struct capture_error_info error = {0};
    CHECK_EQUAL(CAPTURE_OK, open_files(paths, 1, 0, &state, &error));
    CHECK_EQUAL(0, ftruncate(path.file, 24));
    CHECK_EQUAL(BACKEND_END, file_backend.read(state, &batch, 0, &error)); /* opened anew: now it ends there */
    file_backend.close(state);
    forget_path(&path);
}

/* A file of `mib` MiB in frames of a KiB, record header included; 24 bytes more for the file header. */
static struct path long_file(int mib) {
    begin(false, 0xa1b2c3d4, 1);
    struct path path = path_of(&content);
    content.length = 0;
    for (uint32_t i = 0; i < 128; i++)
        frame(i, 0, 1024 - 16, 1024 - 16, 1);
    for (int i = 0; i < 8 * mib; i++)
        CHECK_EQUAL(content.length, write(path.file, content.data, content.length));
    return path;
}

/* Filler of 8 MiB, so that the reader comes to its second window. */
static void a_file_that_is_cut_between_two_windows_gives_an_error_not_a_signal(void) {
    struct path path = long_file(8);
    const char *paths[] = {path.text};
    void *state;
    struct frame_batch batch;
    struct capture_error_info error = {0};
    CHECK_EQUAL(CAPTURE_OK, open_files(paths, 1, 0, &state, &error));
    CHECK_EQUAL(FRAME_BATCH, file_backend.read(state, &batch, 0, &error));
    file_backend.release(state);
    CHECK_EQUAL(0, ftruncate(path.file, 5 << 20)); /* behind the first window */
    int count;
    while ((count = file_backend.read(state, &batch, 0, &error)) > 0)
        file_backend.release(state);
    CHECK_EQUAL(CAPTURE_ERR_IO, count);
    CHECK(strstr(error.message, "was cut to 5242880 bytes while it was read") != NULL);
    file_backend.close(state);
    forget_path(&path);
}

/* KiB of the mapping around `address` that this process has in memory. */
static unsigned long resident_kib(const void *address) {
    FILE *maps = fopen("/proc/self/smaps", "r");
    CHECK(maps != NULL);
    char line[512];
    unsigned long from, to, kib = 0;
    bool here = false;
    while (fgets(line, sizeof(line), maps)) {
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
            here = from <= (unsigned long)address && (unsigned long)address < to;
        else if (here && sscanf(line, "Rss: %lu kB", &kib) == 1)
            break;
    }
    fclose(maps);
    return kib;
}

static void no_more_of_a_file_stays_in_memory_than_two_windows(void) {
    struct path path = long_file(24);
    const char *paths[] = {path.text};
    void *state;
    struct frame_batch batch;
    struct capture_error_info error = {0};
    CHECK_EQUAL(CAPTURE_OK, open_files(paths, 1, 0, &state, &error));
    unsigned long frames = 0, most = 0;
    int count;
    while ((count = file_backend.read(state, &batch, 0, &error)) > 0) {
        unsigned long kib = resident_kib(batch.frames[0].data);
        most = kib > most ? kib : most;
        for (int i = 0; i < count; i++)
            CHECK_EQUAL(1, batch.frames[i].data[0]);
        frames += (unsigned long)count;
        file_backend.release(state);
    }
    CHECK_EQUAL(BACKEND_END, count);
    CHECK_EQUAL(24 << 10, frames);
    CHECK(most > 0 && most <= 8 << 10);
    file_backend.close(state);
    forget_path(&path);
}

int main(void) {
    RUN(both_byte_orders_and_both_resolutions_are_read);
    RUN(the_longer_record_header_of_modified_files_is_read);
    RUN(files_before_version_2_3_have_their_lengths_reversed);
    RUN(raw_ip_is_one_link_type_whatever_number_the_writer_used);
    RUN(a_file_without_records_is_empty_not_damaged);
    RUN(a_cut_record_is_one_damaged_frame_after_the_whole_ones);
    RUN(a_cut_record_header_is_one_damaged_frame);
    RUN(an_insane_record_length_is_one_damaged_frame_and_the_end);
    RUN(frames_longer_than_snaplen_are_cut_and_marked);
    RUN(a_captured_length_above_the_original_is_believed);
    RUN(several_files_are_one_trace_in_the_order_given);
    RUN(garbage_file_headers_are_refused_by_name);
    RUN(compressed_files_are_refused_with_what_to_do);
    RUN(a_bad_file_among_good_ones_is_refused_before_anything_is_read);
    RUN(a_fifo_is_refused_without_waiting_for_its_writer);
    RUN(a_file_that_is_cut_before_it_is_read_gives_an_error_not_a_signal);
    RUN(a_file_that_is_cut_between_two_windows_gives_an_error_not_a_signal);
    RUN(no_more_of_a_file_stays_in_memory_than_two_windows);
    return 0;
}
