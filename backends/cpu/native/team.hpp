// How the threads of a call share its work. A kernel is a function of a record and a team; every thread of the team calls
// it with the same record. One call may be a team of its own (`gather`), or a whole step of the model is (tape.cpp):
// between two kernels of a step there is then one meeting, which spins, where waking a thread would take longer than many
// kernels do.
#pragma once

#include <omp.h>
#include <sched.h>

#include <atomic>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

constexpr int64_t CACHE_LINE = 64;
constexpr int SPINS = 4000;  // about a tenth of a millisecond; whoever is later than that lost its processor to another

// Where the threads of one team meet.
struct alignas(CACHE_LINE) Meeting {
    std::atomic<int32_t> waiting{0};
    alignas(CACHE_LINE) std::atomic<int32_t> round{0};
    alignas(CACHE_LINE) std::atomic<int64_t> next{0};  // the first share that nobody has taken
    void* shared = nullptr;                            // what one thread shows the others
};

struct Team {
    int64_t thread, threads;
    Meeting* meeting;

    // Returns when every thread of the team has called it.
    void meet() const {
        if (threads == 1) {
            meeting->next.store(0, std::memory_order_relaxed);
            return;
        }
        const int32_t round = meeting->round.load(std::memory_order_acquire);
        if (meeting->waiting.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
            meeting->waiting.store(0, std::memory_order_relaxed);
            meeting->next.store(0, std::memory_order_relaxed);
            meeting->round.store(round + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; meeting->round.load(std::memory_order_acquire) == round; spins++) {
            if (spins < SPINS)
                rest();
            else
                sched_yield();
        }
    }

    // This thread's part of `count` equal shares is [first(count), first(count) of the next thread).
    int64_t first(int64_t count) const { return count * thread / threads; }
    int64_t last(int64_t count) const { return count * (thread + 1) / threads; }

    // The next `count` shares that nobody has taken since the team met: for shares that differ, or a thread that may be
    // held up.
    int64_t take(int64_t count) const { return meeting->next.fetch_add(count, std::memory_order_relaxed); }

    static void rest() {
#if defined(__x86_64__)
        _mm_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }
};

// Calls `kernel(team)` on `threads` threads.
template <typename Kernel>
void gather(int64_t threads, Kernel kernel) {
    Meeting meeting;
    if (threads <= 1) {
        kernel(Team{0, 1, &meeting});
        return;
    }
#pragma omp parallel num_threads(threads)
    kernel(Team{omp_get_thread_num(), omp_get_num_threads(), &meeting});
}
