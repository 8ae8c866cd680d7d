// As much of CUDA as the kernels need, on one core: the threads of a block, or of a cluster, are coroutines that take
// turns.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define XS_CLUSTERS 1

struct Index { unsigned x; };
static Index threadIdx, blockIdx, gridDim;

namespace emulation {

constexpr size_t stack_bytes = 128 << 10;

struct Barrier {
    unsigned arrived = 0;
    long turn = 0;
};

struct Thread {
    Index index, block;
    void* stack;  // its top, while others run
    long shuffles = 0;
    int sent[2];
    bool done = false;
};

struct Warp {
    Barrier shuffle, barrier;
};

static std::vector<Thread> threads;  // of all blocks of a cluster
static std::vector<Warp> warps;
static std::vector<Barrier> blocks;
static Barrier cluster;
static std::vector<std::unique_ptr<char[]>> stacks;  // kept from block to block
static unsigned current, block_size, dynamic_bytes;
static std::map<std::pair<const void*, unsigned>, std::vector<char>> memory;  // by user and block
static void* scheduler;
static std::function<void()> kernel;

// Leaves this stack for another with the registers that a function must keep; swapcontext would ask the system for
// the signal mask each time, which was half the time of all kernels.
__attribute__((naked, noipa)) static void switch_stack(void** /* left */, void* /* entered */) {
    asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
        "movq %rsp, (%rdi); movq %rsi, %rsp\n"
        "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}

inline void resume(unsigned i) {
    current = i, threadIdx = threads[i].index, blockIdx = threads[i].block;
}

inline void yield() {
    unsigned me = current;
    switch_stack(&threads[me].stack, scheduler);
    resume(me);
}

inline void begin() {
    kernel();
    threads[current].done = true;
    yield();
}

// A stack that switch_stack enters at begin().
inline void* entrance(char* space) {
    size_t end = (reinterpret_cast<size_t>(space) + stack_bytes) / 16 * 16;
    void** top = reinterpret_cast<void**>(end) - 2;
    top[0] = reinterpret_cast<void*>(begin), top[1] = nullptr;
    return top - 6;
}

inline void wait(Barrier& barrier, unsigned threads) {
    if (++barrier.arrived == threads) {
        barrier.arrived = 0, ++barrier.turn;
        return;
    }
    for (long turn = barrier.turn; barrier.turn == turn;) yield();
}

inline void* block_memory(const void* user, unsigned block, size_t bytes) {
    auto& space = memory[{user, block}];
    if (space.empty()) space.resize(bytes + 16);
    return reinterpret_cast<void*>((reinterpret_cast<size_t>(space.data()) + 15) / 16 * 16);
}

inline void run_cluster(unsigned first_block, unsigned in_cluster) {
    memory.clear();
    threads.assign(in_cluster * block_size, Thread());
    warps.assign(threads.size() / 32, Warp());
    blocks.assign(in_cluster, Barrier());
    cluster = Barrier();
    while (stacks.size() < threads.size()) stacks.emplace_back(new char[stack_bytes]);
    for (unsigned i = 0; i < threads.size(); ++i) {
        Thread& thread = threads[i];
        thread.index.x = i % block_size, thread.block.x = first_block + i / block_size;
        thread.stack = entrance(stacks[i].get());
    }
    for (unsigned left = threads.size(); left;) {
        for (unsigned i = 0; i < threads.size(); ++i) {
            if (threads[i].done) continue;
            resume(i);
            switch_stack(&scheduler, threads[i].stack);
            left -= threads[i].done;
        }
    }
}

inline void run(std::function<void()> body, unsigned grid, unsigned size, unsigned bytes, unsigned in_cluster) {
    kernel = body, gridDim.x = grid, block_size = size, dynamic_bytes = bytes;
    for (unsigned block = 0; block < grid; block += in_cluster) run_cluster(block, in_cluster);
}

}  // namespace emulation

inline int __shfl_xor_sync(unsigned, int value, int distance) {
    using namespace emulation;
    unsigned me = current;
    int turn = threads[me].shuffles++ % 2;
    threads[me].sent[turn] = value;
    wait(warps[me / 32].shuffle, 32);
    return threads[me ^ distance].sent[turn];
}

inline void __syncwarp() {
    using namespace emulation;
    wait(warps[current / 32].barrier, 32);
}

inline void __syncthreads() {
    using namespace emulation;
    wait(blocks[current / block_size], block_size);
}

namespace xsoftmax {

inline void* row_space() {
    static char user;
    return emulation::block_memory(&user, blockIdx.x, emulation::dynamic_bytes);
}

template <class User, class S, int n>
S* shared_space() {
    static char user;
    return static_cast<S*>(emulation::block_memory(&user, blockIdx.x, n * sizeof(S)));
}

inline void cluster_barrier() {
    using namespace emulation;
    wait(cluster, threads.size());
}

template <class S>
S of_block(const S* here, int block) {
    using namespace emulation;
    unsigned first = threads[0].block.x;
    for (auto& entry : memory) {
        const char* space = entry.second.data();
        const char* address = reinterpret_cast<const char*>(here);
        if (entry.first.second != blockIdx.x || address < space || address >= space + entry.second.size()) continue;
        return *static_cast<S*>(block_memory(entry.first.first, first + block, 0));
    }
    return *here;
}

}  // namespace xsoftmax
