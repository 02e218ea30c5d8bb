/* SPDX-License-Identifier: Apache-2.0 */
/* The C tests' harness: a test is a function whose name is a sentence; RUN(test) runs it and says so; a failed CHECK stops the program. */
#ifndef JARVIS_CHECK_H
#define JARVIS_CHECK_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                                      \
    do {                                                                                                      \
        if (!(condition)) {                                                                                   \
            fprintf(stderr, "%s:%d: %s: not true: %s\n", __FILE__, __LINE__, __func__, #condition);           \
            exit(1);                                                                                          \
        }                                                                                                     \
    } while (0)

#define CHECK_EQUAL(expected, actual)                                                                         \
    do {                                                                                                      \
        int64_t check_expected = (int64_t)(expected), check_actual = (int64_t)(actual);                       \
        if (check_expected != check_actual) {                                                                 \
            fprintf(stderr, "%s:%d: %s: %s is %" PRId64 ", expected %" PRId64 "\n", __FILE__, __LINE__,       \
                    __func__, #actual, check_actual, check_expected);                                         \
            exit(1);                                                                                          \
        }                                                                                                     \
    } while (0)

#define CHECK_TEXT(expected, actual)                                                                          \
    do {                                                                                                      \
        if (strcmp((expected), (actual)) != 0) {                                                              \
            fprintf(stderr, "%s:%d: %s: %s is \"%s\", expected \"%s\"\n", __FILE__, __LINE__, __func__,       \
                    #actual, (actual), (expected));                                                           \
            exit(1);                                                                                          \
        }                                                                                                     \
    } while (0)

#define RUN(test)                                                                                             \
    do {                                                                                                      \
        test();                                                                                               \
        printf("ok - %s\n", #test);                                                                           \
    } while (0)

#endif
