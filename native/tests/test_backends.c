/* SPDX-License-Identifier: Apache-2.0 */
/* Configuration checks, the table of backends and the choice of one; nothing here needs a privilege. */
#include "backend/backend.h"
#include "check.h"
#include "config.h"

static const char *const one_file[] = {"trace.pcap"};

static struct capture_config live(const char *interface) {
    return (struct capture_config){.struct_size = sizeof(struct capture_config), .interface = interface};
}

static struct capture_config offline(void) {
    return (struct capture_config){.struct_size = sizeof(struct capture_config), .files = one_file, .file_count = 1};
}

static void check_invalid(const struct capture_config *config, const char *field, const char *message) {
    struct capture_error_info error = {0};
    CHECK_EQUAL(CAPTURE_ERR_INVALID, capture_config_validate(config, &error));
    CHECK_EQUAL(CAPTURE_ERR_INVALID, error.code);
    CHECK_TEXT(field, error.field);
    if (!strstr(error.message, message))
        fprintf(stderr, "%s\n", error.message);
    CHECK(strstr(error.message, message) != NULL);
}

#define CHECK_INVALID(config, member, value, message)                                                                            \
    do {                                                                                                                         \
        struct capture_config changed = config;                                                                                  \
        changed.member = value;                                                                                                  \
        check_invalid(&changed, #member, message);                                                                               \
    } while (0)

#define CHECK_VALID(config, member, value)                                                                                       \
    do {                                                                                                                         \
        struct capture_config changed = config;                                                                                  \
        changed.member = value;                                                                                                  \
        CHECK_EQUAL(CAPTURE_OK, capture_config_validate(&changed, NULL));                                                        \
    } while (0)

static void sizes_out_of_range_are_refused_with_what_is_accepted(void) {
    CHECK_INVALID(live("lo"), snaplen, 12, "snaplen is 12: accepted are 0 (262144) and 64 to 262144");
    CHECK_INVALID(live("lo"), snaplen, 262145, "snaplen is 262145");
    CHECK_VALID(live("lo"), snaplen, 64);
    CHECK_VALID(live("lo"), snaplen, 262144);
    CHECK_INVALID(live("lo"), buffer_size_mb, 63, "buffer_size_mb is 63: accepted are 0 (64) and 64 to 8192");
    CHECK_INVALID(live("lo"), buffer_size_mb, 8193, "buffer_size_mb is 8193");
    CHECK_VALID(live("lo"), buffer_size_mb, 8192);
    CHECK_INVALID(live("lo"), packet_ring_mb, 8193, "packet_ring_mb is 8193: accepted are 0 (off) to 8192");
    CHECK_VALID(live("lo"), packet_ring_mb, 1);
    CHECK_INVALID(live("lo"), busy_poll_us, 1001, "busy_poll_us is 1001: accepted are 0 (off) to 1000");
    CHECK_INVALID(offline(), busy_poll_us, 1, "busy_poll_us is 1: files have no driver to poll, accepted is 0");
    CHECK_VALID(live("lo"), busy_poll_us, 1000);
    CHECK_INVALID(live("lo"), workers, 65, "workers is 65: accepted are 0");
    CHECK_VALID(live("lo"), workers, 64);
    CHECK_INVALID(live("lo"), struct_size, 8, "struct_size is 8: accepted is");
}

static void defaults_stand_where_a_field_is_zero(void) {
    struct capture_config config = live("lo");
    CHECK_EQUAL(262144, capture_config_snaplen(&config));
    CHECK_EQUAL(64, capture_config_buffer_mb(&config));
    config.snaplen = 96;
    config.buffer_size_mb = 128;
    CHECK_EQUAL(96, capture_config_snaplen(&config));
    CHECK_EQUAL(128, capture_config_buffer_mb(&config));
}

static void exactly_one_of_interface_and_files_is_accepted(void) {
    struct capture_config config = live(NULL);
    check_invalid(&config, "interface", "all missing");
    config = offline();
    config.interface = "lo";
    check_invalid(&config, "interface", "exactly one");
    CHECK_INVALID(live(NULL), interface, "", "interface is \"\"");
    CHECK_INVALID(live(NULL), interface, "a-name-of-16-byte", "1 to 15 bytes");
    CHECK_INVALID(offline(), file_count, 0, "file_count is 0");
    const char *const holes[] = {"a", NULL};
    config = (struct capture_config){.struct_size = sizeof config, .files = holes, .file_count = 2};
    check_invalid(&config, "files", "files[1] is empty");
    check_invalid(NULL, "config", "NULL");
}

static void worker_cpus_must_exist_and_be_one_per_worker(void) {
    const int32_t cpus[] = {0, 100000}, negative[] = {-1};
    struct capture_config config = live("lo");
    config.worker_cpus = cpus;
    config.worker_cpu_count = 2;
    config.workers = 1;
    check_invalid(&config, "worker_cpu_count", "worker_cpu_count is 2: accepted is one CPU for each worker (1)");
    config.workers = 2;
    check_invalid(&config, "worker_cpus", "worker_cpus[1] is 100000: this machine has the CPUs 0 to ");
    config.workers = config.worker_cpu_count = 1;
    CHECK_EQUAL(CAPTURE_OK, capture_config_validate(&config, NULL));
    config.worker_cpus = negative;
    check_invalid(&config, "worker_cpus", "worker_cpus[0] is -1");
    config.worker_cpus = NULL;
    check_invalid(&config, "worker_cpus", "missing");
}

static void timestamp_sources_that_cannot_be_are_refused(void) {
    CHECK_INVALID(live("lo"), timestamp_source, 5,
                  "timestamp_source is 5: accepted are 0 (default), 1 (kernel), 2 (hardware), 3 (ptp) and 4 (ntp)");
    CHECK_INVALID(offline(), timestamp_source, 2, "files carry their own timestamps");
    CHECK_INVALID(offline(), timestamp_source, 3, "timestamp_source is 3 (ptp): files carry their own timestamps");
    CHECK_INVALID(offline(), timestamp_source, 4, "timestamp_source is 4 (ntp): files carry their own timestamps");
    CHECK_VALID(live("lo"), timestamp_source, 2);
}

static void check_selection(struct capture_config config, const char *backend, int code, const char *text) {
    struct capture_error_info error = {0};
    char name[16] = "";
    config.backend = backend;
    CHECK_EQUAL(code, capture_select_backend(&config, name, &error));
    if (code == CAPTURE_OK)
        CHECK_TEXT(text, name);
    else if (!strstr(error.message, text))
        fprintf(stderr, "%s\n", error.message);
    CHECK(code == CAPTURE_OK || strstr(error.message, text) != NULL);
}

static void files_are_read_by_the_file_backend(void) {
    check_selection(offline(), NULL, CAPTURE_OK, "file");
    check_selection(offline(), "auto", CAPTURE_OK, "file");
    struct capture_config config = offline();
    config.workers = 2;
    check_selection(config, "file", CAPTURE_OK, "file");
}

static void a_backend_that_does_not_fit_is_refused_with_those_that_do(void) {
    check_selection(offline(), "pcap", CAPTURE_ERR_BACKEND, "backend is pcap: for files accepted are auto and file");
    check_selection(live("lo"), "file", CAPTURE_ERR_BACKEND, "for an interface accepted are auto, afpacket, pcap and pfring");
    check_selection(live("lo"), "dpdk", CAPTURE_ERR_BACKEND,
                    "backend is \"dpdk\": accepted are auto, afpacket, pcap, pfring and file");
    struct capture_config config = live("lo");
    config.workers = 2;
    check_selection(config, "pcap", CAPTURE_ERR_INVALID, "workers is 2: with backend pcap accepted are 0 and 1");
    config = offline();
    config.snaplen = 1;
    check_selection(config, NULL, CAPTURE_ERR_INVALID, "snaplen is 1");
}

static void an_unknown_interface_is_refused_by_name(void) {
    check_selection(live("nosuch0"), NULL, CAPTURE_ERR_NO_INTERFACE, "interface nosuch0 does not exist");
    check_selection(live("nosuch0"), "pcap", CAPTURE_ERR_NO_INTERFACE, "interface nosuch0 does not exist");
}

static void every_backend_is_listed_with_a_reason(void) {
    struct capture_backend_info backends[8];
    CHECK_EQUAL(4, capture_get_backends(NULL, NULL, 0));
    CHECK_EQUAL(4, capture_get_backends(NULL, backends, 8));
    CHECK_TEXT("afpacket", backends[0].name);
    CHECK_TEXT("pcap", backends[1].name);
    CHECK_TEXT("pfring", backends[2].name);
    CHECK_TEXT("file", backends[3].name);
    CHECK(backends[3].usable && !backends[3].live && backends[0].live);
    CHECK_EQUAL(4, capture_get_backends("nosuch0", backends, 8));
    for (int i = 0; i < 4; i++) {
        CHECK(!backends[i].usable);
        CHECK(backends[i].reason[0] != '\0');
        CHECK(backends[i].description[0] != '\0');
    }
    backends[1].name[0] = 'x';
    CHECK_EQUAL(4, capture_get_backends(NULL, backends, 1)); /* no more than the capacity is written */
    CHECK_EQUAL('x', backends[1].name[0]);
}

static void every_error_code_has_a_text_of_its_own(void) {
    for (int code = CAPTURE_ERR_NOT_FOUND; code <= CAPTURE_OK; code++)
        for (int other = code + 1; other <= CAPTURE_OK; other++)
            CHECK(strcmp(capture_strerror(code), capture_strerror(other)) != 0);
    CHECK_TEXT("unknown error code", capture_strerror(-99));
    CHECK(strchr(capture_version(), '.') != NULL);
}

int main(void) {
    RUN(sizes_out_of_range_are_refused_with_what_is_accepted);
    RUN(defaults_stand_where_a_field_is_zero);
    RUN(exactly_one_of_interface_and_files_is_accepted);
    RUN(worker_cpus_must_exist_and_be_one_per_worker);
    RUN(timestamp_sources_that_cannot_be_are_refused);
    RUN(files_are_read_by_the_file_backend);
    RUN(a_backend_that_does_not_fit_is_refused_with_those_that_do);
    RUN(an_unknown_interface_is_refused_by_name);
    RUN(every_backend_is_listed_with_a_reason);
    RUN(every_error_code_has_a_text_of_its_own);
    return 0;
}
