// The threads that kernels share: parts of one job, each taken by whoever is free.
//
// Decoding is some hundred kernels a step, most of them shorter than it takes to wake a thread. So a helper that has
// nothing to do looks for the next job a while before it sleeps. And the caller waits for parts that a helper has begun,
// never for a helper: when another process has taken a core, the others do its share.
//
// What is not here: kernels. Which thread takes which part differs from run to run, so a part may not depend on another.
#pragma once

#include <cstdint>

using Work = void (*)(const void* context, int64_t part);

// work(context, part) for each part, on the calling thread and up to threads - 1 others. Returns when all are done.
void run_parts(int64_t threads, int64_t parts, Work work, const void* context);

template <typename Body>
void each(int64_t threads, int64_t parts, const Body& body) {
    run_parts(threads, parts, [](const void* context, int64_t part) { (*static_cast<const Body*>(context))(part); },
              &body);
}

// body(first, end) for ranges of rows, `threads` times two of them, or one where there is little to do.
template <typename Body>
void each_range(int64_t threads, int64_t rows, bool little, const Body& body) {
    const int64_t parts = little || threads == 1 ? 1 : (rows < 2 * threads ? rows : 2 * threads);
    each(threads, parts, [&](int64_t part) { body(rows * part / parts, rows * (part + 1) / parts); });
}
