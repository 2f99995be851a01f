// See crew.hpp.

#include "crew.hpp"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace {

constexpr auto PATIENCE = std::chrono::microseconds(50);  // from one kernel to the next, Python between them included
constexpr int ROUNDS = 64;                                // looks between two looks at the clock

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Looks until `there`, or until patience is over: then whether it is there says the return value.
template <typename There>
bool look(const There& there) {
    const auto end = std::chrono::steady_clock::now() + PATIENCE;
    do {
        for (int round = 0; round < ROUNDS; round++) {
            if (there()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

// One job at a time. The ticket holds the job's number, and how many of its parts nobody has taken: a part is taken by
// exchanging the ticket for one with a part fewer, which fails when the job is another by then. The job's fields are
// written while no part is left to take.
struct Crew {
    alignas(64) std::atomic<uint64_t> ticket{0};
    alignas(64) std::atomic<int64_t> undone{0};
    alignas(64) std::atomic<Work> work{nullptr};
    std::atomic<const void*> context{nullptr};
    std::atomic<int64_t> parts{0};
    alignas(64) std::atomic<int> sleepers{0};
    std::atomic<bool> waiting{false};
    std::atomic_flag taken = ATOMIC_FLAG_INIT;
    int64_t helpers = 0;
    std::mutex mutex;
    std::condition_variable wake, done;

    static uint32_t left(uint64_t ticket) { return uint32_t(ticket); }

    void help() {
        uint64_t seen = ticket.load();
        while (left(seen)) {
            const Work job = work.load(std::memory_order_relaxed);
            const void* with = context.load(std::memory_order_relaxed);
            const int64_t part = parts.load(std::memory_order_relaxed) - left(seen);
            if (!ticket.compare_exchange_weak(seen, seen - 1)) continue;
            job(with, part);
            if (undone.fetch_sub(1) == 1 && waiting.load()) tell(done);
            seen = ticket.load();
        }
    }

    void tell(std::condition_variable& whom) {
        { const std::lock_guard<std::mutex> lock(mutex); }
        whom.notify_all();
    }

    void serve() {
        const auto called = [this] { return left(ticket.load()) != 0; };
        for (;;) {
            help();
            if (look(called)) continue;
            std::unique_lock<std::mutex> lock(mutex);
            sleepers.fetch_add(1);
            wake.wait(lock, called);
            sleepers.fetch_sub(1);
        }
    }

    void grow(int64_t wanted) {
        try {
            for (; helpers < wanted; helpers++) std::thread([this] { serve(); }).detach();
        } catch (const std::system_error&) {
            // No more threads are to be had: the caller does what they would have done.
        }
    }

    void run(int64_t threads, int64_t count, Work job, const void* with) {
        grow(threads - 1);
        work.store(job, std::memory_order_relaxed);
        context.store(with, std::memory_order_relaxed);
        parts.store(count, std::memory_order_relaxed);
        undone.store(count);
        ticket.store(((ticket.load() >> 32) + 1) << 32 | uint64_t(count));
        if (sleepers.load()) tell(wake);
        help();
        const auto over = [this] { return undone.load() == 0; };
        if (look(over)) return;
        std::unique_lock<std::mutex> lock(mutex);
        waiting.store(true);
        done.wait(lock, over);
        waiting.store(false);
    }
};

// Never destroyed: its threads end with the process.
Crew& crew() {
    static Crew* const one = new Crew;
    return *one;
}

}  // namespace

void run_parts(int64_t threads, int64_t parts, Work work, const void* context) {
    Crew& all = crew();
    if (threads <= 1 || parts <= 1 || all.taken.test_and_set()) {
        for (int64_t part = 0; part < parts; part++) work(context, part);
        return;
    }
    all.run(threads, parts, work, context);
    all.taken.clear();
}
