/* SPDX-License-Identifier: Apache-2.0 */
/* Backends that come with modules: what is added, what is refused and why, and the place of each in the table. */
#include "backend/registry.h"
#include "check.h"
#include "error.h"
#include "module.h"

#include <unistd.h>

static bool usable(const char *interface, char *reason, size_t size) {
    (void)interface;
    snprintf(reason, size, "a module's");
    return true;
}

static bool not_by_itself(const char *interface, char *reason, size_t size) {
    snprintf(reason, size, "not unasked from %s", interface);
    return false;
}

static int refuse_odd_snaplen(const struct capture_config *config, struct capture_error_info *error) {
    if (config->snaplen % 2 == 0)
        return CAPTURE_OK;
    return capture_fail(error, CAPTURE_ERR_INVALID, "snaplen", "snaplen is %u: accepted are even ones", config->snaplen);
}

static int open_nothing(const struct capture_config *config, uint32_t queue, uint32_t queues, void **state,
                        struct capture_error_info *error) {
    (void)config, (void)queue, (void)queues, (void)error;
    *state = NULL;
    return CAPTURE_OK;
}

static int read_nothing(void *state, struct frame_batch *batch, int timeout_ms, struct capture_error_info *error) {
    (void)state, (void)timeout_ms, (void)error;
    batch->count = 0;
    return 0;
}

static void no_stats(void *state, struct backend_stats *out) {
    (void)state;
    *out = (struct backend_stats){0};
}

static void nothing(void *state) {
    (void)state;
}

static const struct capture_backend_ops complete = {.description = "a module's backend",
                                                    .live = true,
                                                    .probe = usable,
                                                    .open = open_nothing,
                                                    .read = read_nothing,
                                                    .release = nothing,
                                                    .stats = no_stats,
                                                    .close = nothing};

static struct capture_backend_ops ops_of(const char *name, int rank) {
    struct capture_backend_ops ops = complete;
    ops.name = name;
    ops.rank = rank;
    return ops;
}

static int add(const struct capture_backend_ops *ops, struct capture_error_info *error) {
    struct capture_module module = {.abi = CAPTURE_MODULE_ABI, .version = capture_version(), .ops = ops};
    return capture_add_module(&module, error);
}

static void check_refused(int code, const struct capture_module *module, const char *field, const char *text) {
    struct capture_error_info error = {0};
    CHECK_EQUAL(code, capture_add_module(module, &error));
    CHECK_EQUAL(code, error.code);
    CHECK_TEXT(field, error.field);
    if (!strstr(error.message, text))
        fprintf(stderr, "%s\n", error.message);
    CHECK(strstr(error.message, text) != NULL);
    CHECK_EQUAL(4, capture_get_backends(NULL, NULL, 0));
}

static void a_module_of_another_release_is_refused(void) {
    struct capture_backend_ops ops = ops_of("other", 0);
    struct capture_module module = {.abi = CAPTURE_MODULE_ABI + 1, .version = capture_version(), .ops = &ops};
    check_refused(CAPTURE_ERR_INVALID, &module, "abi", "module has ABI 5: accepted is 4");
    module = (struct capture_module){.abi = CAPTURE_MODULE_ABI, .version = "9.9.9", .ops = &ops};
    check_refused(CAPTURE_ERR_INVALID, &module, "version", "module is of version 9.9.9: accepted is ");
    module.version = NULL;
    check_refused(CAPTURE_ERR_INVALID, &module, "version", "(none)");
    check_refused(CAPTURE_ERR_INVALID, NULL, "abi", "module has ABI 0");
}

static void a_table_with_a_hole_is_refused(void) {
    struct capture_backend_ops ops = ops_of("hole", 0);
    struct capture_module module = {.abi = CAPTURE_MODULE_ABI, .version = capture_version(), .ops = &ops};
    ops.stats = NULL;
    check_refused(CAPTURE_ERR_INVALID, &module, "ops", "complete");
    const char *const names[] = {NULL, "", "auto", "a-name-of-16-byt"};
    for (int i = 0; i < 4; i++) {
        ops = ops_of(names[i], 0);
        check_refused(CAPTURE_ERR_INVALID, &module, "ops", "complete");
    }
    ops = ops_of("offline", 0);
    ops.live = false;
    check_refused(CAPTURE_ERR_INVALID, &module, "ops", "complete");
    module.ops = NULL;
    check_refused(CAPTURE_ERR_INVALID, &module, "ops", "complete");
}

static void a_name_that_is_known_is_refused(void) {
    struct capture_backend_ops ops = ops_of("pcap", 5);
    struct capture_module module = {.abi = CAPTURE_MODULE_ABI, .version = capture_version(), .ops = &ops};
    check_refused(CAPTURE_ERR_INVALID, &module, "module", "module pcap: a backend of this name is known already");
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_note_module("afpacket", "d", "r"));
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_note_module("", "d", "r"));
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_note_module("x", "d", ""));
}

static struct capture_backend_ops fast, careful, slow;

static void modules_take_their_place_by_rank_and_notes_come_last(void) {
    fast = ops_of("fast", 40);
    fast.automatic = not_by_itself;
    careful = ops_of("careful", 30);
    careful.check = refuse_odd_snaplen;
    careful.device_names = true;
    slow = ops_of("slow", 0);
    CHECK_EQUAL(CAPTURE_OK, capture_note_module("absent", "an absent one", "its library is not installed"));
    CHECK_EQUAL(CAPTURE_OK, add(&slow, NULL));
    CHECK_EQUAL(CAPTURE_OK, add(&careful, NULL));
    CHECK_EQUAL(CAPTURE_OK, add(&fast, NULL));
    const char *const expected[] = {"fast", "careful", "afpacket", "pcap", "pfring", "file", "slow", "absent"};
    struct capture_backend_info backends[8];
    CHECK_EQUAL(8, capture_get_backends(NULL, backends, 8));
    for (int i = 0; i < 8; i++)
        CHECK_TEXT(expected[i], backends[i].name);
    CHECK_TEXT("a module's backend", backends[0].description);
    CHECK(backends[0].usable && backends[0].live);
    CHECK_TEXT("an absent one", backends[7].description);
    CHECK_TEXT("its library is not installed", backends[7].reason);
    CHECK(!backends[7].usable && backends[7].live);
}

static void check_selection(const char *backend, const char *interface, uint32_t snaplen, int code, const char *text) {
    struct capture_config config = {.struct_size = sizeof config, .interface = interface, .backend = backend, .snaplen = snaplen};
    struct capture_error_info error = {0};
    char name[16] = "";
    CHECK_EQUAL(code, capture_select_backend(&config, name, &error));
    const char *said = code == CAPTURE_OK ? name : error.message;
    if (!strstr(said, text))
        fprintf(stderr, "%s\n", said);
    CHECK(strstr(said, text) != NULL);
}

static void auto_takes_the_highest_rank_that_is_willing_and_fits(void) {
    check_selection(NULL, "lo", 128, CAPTURE_OK, "careful");
    check_selection("fast", "lo", 128, CAPTURE_OK, "fast");
    check_selection("slow", "lo", 128, CAPTURE_OK, "slow");
    check_selection("careful", "lo", 129, CAPTURE_ERR_INVALID, "snaplen is 129: accepted are even ones");
    check_selection("careful", "zc:99", 128, CAPTURE_OK, "careful");
    check_selection("slow", "zc:99", 128, CAPTURE_ERR_NO_INTERFACE, "interface zc:99 does not exist");
    if (geteuid() == 0) /* afpacket needs CAP_NET_RAW */
        check_selection(NULL, "lo", 129, CAPTURE_OK, "afpacket");
}

static void refusals_name_what_there_is(void) {
    check_selection("none", "lo", 0, CAPTURE_ERR_BACKEND,
                    "backend is \"none\": accepted are auto, fast, careful, afpacket, pcap, pfring, file and slow");
    check_selection("file", "lo", 0, CAPTURE_ERR_BACKEND,
                    "for an interface accepted are auto, fast, careful, afpacket, pcap, pfring and slow");
    check_selection("absent", "lo", 0, CAPTURE_ERR_BACKEND, "backend is absent, which is not here: its library is not installed");
}

static void a_module_after_the_first_capture_is_refused(void) {
    const char *files[] = {"/nonexistent.pcap"};
    struct capture_config config = {.struct_size = sizeof config, .files = files, .file_count = 1};
    capture_t *capture;
    CHECK(capture_init(&config, &capture, NULL) < 0);
    struct capture_backend_ops ops = ops_of("late", 0);
    struct capture_error_info error = {0};
    CHECK_EQUAL(CAPTURE_ERR_STATE, add(&ops, &error));
    CHECK(strstr(error.message, "comes too late") != NULL);
    CHECK_EQUAL(CAPTURE_ERR_STATE, capture_note_module("later", "d", "r"));
}

static void the_table_is_bounded(void) {
    static char names[BACKEND_ROWS_MAX][16];
    int at = 0;
    for (int count = capture_get_backends(NULL, NULL, 0); count < BACKEND_ROWS_MAX; count++, at++) {
        snprintf(names[at], sizeof names[at], "note%d", at);
        CHECK_EQUAL(CAPTURE_OK, capture_note_module(names[at], "a note", "a reason"));
    }
    CHECK_EQUAL(CAPTURE_ERR_NO_MEMORY, capture_note_module("one-more", "a note", "a reason"));
    CHECK_EQUAL(BACKEND_ROWS_MAX, capture_get_backends(NULL, NULL, 0));
}

int main(void) {
    RUN(a_module_of_another_release_is_refused);
    RUN(a_table_with_a_hole_is_refused);
    RUN(a_name_that_is_known_is_refused);
    RUN(modules_take_their_place_by_rank_and_notes_come_last);
    RUN(auto_takes_the_highest_rank_that_is_willing_and_fits);
    RUN(refusals_name_what_there_is);
    RUN(the_table_is_bounded);
    RUN(a_module_after_the_first_capture_is_refused);
    return 0;
}
