// Threads that share a row, and how their parts of it come together. After `reduce` all of them hold the same bits, and
// each may overwrite what another read before.
//
// A team has `threads` in a block, `rows` that a block takes at once, `size` threads of a row, and for each thread its
// row's `slot` in the block and its `lane` in the row.

namespace xsoftmax {

#ifdef __CUDACC__
// Shared memory whose size the launch gives.
XS_FUNCTION void* row_space() {
    extern __shared__ uint4 space[];
    return space;
}

// Shared memory of n states, the same at each call by a `User`.
template <class User, class S, int n>
XS_FUNCTION S* shared_space() {
    alignas(16) __shared__ char space[n * sizeof(S)];
    return reinterpret_cast<S*>(space);
}

#define XS_CLUSTERS (__CUDA_ARCH__ >= 900)
#if XS_CLUSTERS
XS_FUNCTION void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// What another block of the cluster has at the same place of its shared memory.
template <class S>
XS_FUNCTION S of_block(const S* here, int block) {
    constexpr int words = sizeof(S) / 4;
    alignas(16) int other[words];
    unsigned there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(unsigned(__cvta_generic_to_shared(here))), "r"(block));
#pragma unroll
    for (int i = 0; i < words; ++i) {
        asm volatile("ld.shared::cluster.b32 %0, [%1];" : "=r"(other[i]) : "r"(there + 4 * i) : "memory");
    }
    return *reinterpret_cast<const S*>(other);
}
#endif
#endif

template <class Real>
struct Largest {
    Real m;
    XS_FUNCTION void merge(Largest other) { m = larger(m, other.m); }
};

template <class S>
XS_FUNCTION S shuffled(const S& s, int distance) {
    constexpr int words = sizeof(S) / 4;
    static_assert(sizeof(S) % 4 == 0, "whole words");
    union Words {
        S whole;
        int at[words];
        XS_FUNCTION Words(const S& s) : whole(s) {}
    } w(s);
#pragma unroll
    for (int i = 0; i < words; ++i) w.at[i] = __shfl_xor_sync(0xffffffffu, w.at[i], distance);
    return w.whole;
}

template <int lanes, class S>
XS_FUNCTION void reduce_lanes(S& s) {
#pragma unroll
    for (int distance = lanes / 2; distance; distance /= 2) s.merge(shuffled(s, distance));
}

// Up to a warp.
template <int lanes>
struct Lanes {
    static constexpr int size = lanes, threads = 128, rows = threads / lanes;
    int lane = threadIdx.x % lanes, slot = threadIdx.x / lanes;

    template <class S>
    XS_FUNCTION void reduce(S& s) const {
        reduce_lanes<lanes>(s);
        if (lanes > 1) __syncwarp();
    }
};

template <int threads_>
struct Block {
    static constexpr int size = threads_, threads = threads_, rows = 1;
    int lane = threadIdx.x, slot = 0;

    template <class S>
    XS_FUNCTION void reduce(S& s) const {
        constexpr int warps = threads / 32;
        S* of_warp = shared_space<Block, S, warps>();
        reduce_lanes<32>(s);
        if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = s;
        __syncthreads();
        s = of_warp[threadIdx.x % warps];
        reduce_lanes<warps>(s);
        __syncthreads();
    }
};

// Rows side by side in memory: 32 of them, each with `size_` threads of different warps.
template <int size_>
struct Columns {
    static constexpr int size = size_, threads = 32 * size_, rows = 32;
    int lane = threadIdx.x / 32, slot = threadIdx.x % 32;

    template <class S>
    XS_FUNCTION void reduce(S& s) const {
        S* of_thread = shared_space<Columns, S, threads>();
        of_thread[threadIdx.x] = s;
        __syncthreads();
        s = of_thread[slot];
#pragma unroll
        for (int i = 1; i < size; ++i) s.merge(of_thread[32 * i + slot]);
        __syncthreads();
    }
};

#if XS_CLUSTERS
// The blocks of a cluster, which read each other's shared memory.
template <int blocks, int threads_>
struct Cluster {
    static constexpr int size = blocks * threads_, threads = threads_, rows = 1;
    int lane = int(blockIdx.x % blocks) * threads_ + threadIdx.x, slot = 0;

    template <class S>
    XS_FUNCTION void reduce(S& s) const {
        S* of_this = shared_space<Cluster, S, 1>();
        Block<threads_>().reduce(s);
        if (threadIdx.x == 0) *of_this = s;
        cluster_barrier();
        s = of_block(of_this, 0);
        for (int block = 1; block < blocks; ++block) s.merge(of_block(of_this, block));
        cluster_barrier();
    }
};
#endif

}  // namespace xsoftmax
