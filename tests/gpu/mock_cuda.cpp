// SPDX-License-Identifier: Apache-2.0
//
// A mock CUDA device: a backend for DeviceType::CUDA in a CPU-only build of PyTorch.
//
// Tensors lie in host memory and CPU kernels compute, called through a boxed fallback. Checked as a
// GPU would: all tensors of an operation on one device (0-dim CPU tensors excepted), generators of
// the device that draws, dtypes of norms, no NumPy. Recorded: launches, and every operation for
// which the host waits (item, blocking copies, nonzero).
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <atomic>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;

constexpr DeviceIndex kMaxDevices = 8;
int num_devices = 1;
thread_local DeviceIndex current = 0;

std::atomic<int64_t> launches{0};
std::atomic<int64_t> bytes_now{0}, bytes_peak{0};
bool strict = true;
py::object* on_sync = nullptr;
py::object* on_launch = nullptr;

void note_bytes(int64_t change) {
  auto now = (bytes_now += change);
  auto peak = bytes_peak.load();
  while (now > peak && !bytes_peak.compare_exchange_weak(peak, now)) {
  }
}

void note_sync(const std::string& kind, const std::string& what, int64_t bytes) {
  if (on_sync == nullptr || !Py_IsInitialized()) return;
  py::gil_scoped_acquire gil;
  (*on_sync)(kind, what, bytes);
}

// ---- device guard, allocator, generators, hooks -------------------------------------------------

struct Guard final : public c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device d) const override {
    Device before(DeviceType::CUDA, current);
    if (d.index() >= 0) current = d.index();
    return before;
  }
  Device getDevice() const override { return Device(DeviceType::CUDA, current); }
  void setDevice(Device d) const override { if (d.index() >= 0) current = d.index(); }
  void uncheckedSetDevice(Device d) const noexcept override { if (d.index() >= 0) current = d.index(); }
  c10::Stream stream(Device d) const {
    return c10::Stream(c10::Stream::DEFAULT, Device(DeviceType::CUDA, d.index() < 0 ? current : d.index()));
  }
  c10::Stream getStream(Device d) const override { return stream(d); }
  c10::Stream getDefaultStream(Device d) const override { return stream(d); }
  c10::Stream getStreamFromGlobalPool(Device d, bool) const override { return stream(d); }
  c10::Stream getNewStream(Device d, int) const override { return stream(d); }
  c10::Stream exchangeStream(c10::Stream s) const override { return s; }
  void record(void**, const c10::Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  DeviceIndex deviceCount() const noexcept override { return static_cast<DeviceIndex>(num_devices); }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  double elapsedTime(void*, void*, const DeviceIndex) const override { return 0; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

struct Block {
  void* data;
  int64_t bytes;
};

void free_block(void* context) {
  auto* block = static_cast<Block*>(context);
  note_bytes(-block->bytes);
  free(block->data);
  delete block;
}

struct DeviceMemory final : public c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = nullptr;
    if (bytes) {
      TORCH_CHECK(posix_memalign(&data, 64, bytes) == 0, "mock cuda: out of memory");
    }
    note_bytes(static_cast<int64_t>(bytes));
    auto* block = new Block{data, static_cast<int64_t>(bytes)};
    return {data, block, &free_block, Device(DeviceType::CUDA, current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { memcpy(to, from, bytes); }
};
DeviceMemory device_memory;

std::mutex pinned_mutex;
std::unordered_map<const void*, size_t> pinned;

struct PinnedMemory final : public c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = nullptr;
    TORCH_CHECK(posix_memalign(&data, 64, std::max<size_t>(bytes, 1)) == 0, "mock cuda: out of memory");
    std::lock_guard<std::mutex> lock(pinned_mutex);
    pinned[data] = bytes;
    return {data, data, &release, Device(DeviceType::CPU)};
  }
  static void release(void* data) {
    {
      std::lock_guard<std::mutex> lock(pinned_mutex);
      pinned.erase(data);
    }
    free(data);
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { memcpy(to, from, bytes); }
};
PinnedMemory pinned_memory;

bool is_pinned(const void* data) {
  std::lock_guard<std::mutex> lock(pinned_mutex);
  for (const auto& [start, bytes] : pinned) {
    if (data >= start && data < static_cast<const char*>(start) + std::max<size_t>(bytes, 1)) return true;
  }
  return false;
}

// Wraps a CPU generator with another seed, so that its numbers differ from the CPU's.
struct DeviceGenerator final : public c10::GeneratorImpl {
  explicit DeviceGenerator(DeviceIndex index)
      : c10::GeneratorImpl(Device(DeviceType::CUDA, index), c10::DispatchKeySet(c10::DispatchKey::CUDA)),
        inner(at::detail::createCPUGenerator(c10::default_rng_seed_val + 7)) {}
  void set_current_seed(uint64_t seed) override { given_seed = seed; inner.set_current_seed(seed ^ 0xC0DAC0DAULL); }
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override { return 0; }
  uint64_t current_seed() const override { return given_seed; }
  uint64_t seed() override { auto s = inner.seed(); given_seed = s; return s; }
  void set_state(const c10::TensorImpl& state) override {
    auto tensor = at::detail::make_tensor<c10::TensorImpl>(
        c10::Storage(state.storage()), state.key_set(), state.dtype());
    tensor.unsafeGetTensorImpl()->set_sizes_and_strides(state.sizes(), state.strides(), state.storage_offset());
    inner.set_state(tensor);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return inner.get_state().getIntrusivePtr(); }
  DeviceGenerator* clone_impl() const override {
    auto* copy = new DeviceGenerator(device().index());
    copy->inner.set_state(inner.get_state());
    copy->given_seed = given_seed;
    return copy;
  }
  at::Generator inner;
  uint64_t given_seed = c10::default_rng_seed_val;
};

const at::Generator& default_generator(DeviceIndex index) {
  static const std::vector<at::Generator> all = [] {
    std::vector<at::Generator> made;
    for (DeviceIndex i = 0; i < kMaxDevices; ++i)
      made.emplace_back(c10::make_intrusive<DeviceGenerator>(i));
    return made;
  }();
  return all[index < 0 ? current : index];
}

}  // namespace

namespace at {
struct CUDAHooks : public CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  const Generator& getDefaultGenerator(DeviceIndex index) const override { return default_generator(index); }
  Generator getNewGenerator(DeviceIndex index) const override {
    return Generator(c10::make_intrusive<DeviceGenerator>(index < 0 ? current : index));
  }
  Device getDeviceFromPtr(void*) const override { return Device(DeviceType::CUDA, current); }
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex current_device() const override { return current; }
  Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  Allocator* getCUDADeviceAllocator() const override { return &device_memory; }
  int getNumGPUs() const override { return num_devices; }
  void deviceSynchronize(DeviceIndex) const override {}
  DeviceIndex deviceCount() const override { return static_cast<DeviceIndex>(num_devices); }
  void setCurrentDevice(DeviceIndex d) const override { current = d; }
  DeviceIndex getCurrentDevice() const override { return current; }
  DeviceIndex exchangeDevice(DeviceIndex d) const override { auto b = current; if (d >= 0) current = d; return b; }
  DeviceIndex maybeExchangeDevice(DeviceIndex d) const override { return exchangeDevice(d); }
};
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at

namespace {

// ---- one memory as CPU and as CUDA tensors ------------------------------------------------

void drop_storage(void* context) { delete static_cast<c10::Storage*>(context); }

struct Kept {
  at::Tensor tensor;
  int64_t bytes;
};
void drop_kept(void* context) {
  auto* kept = static_cast<Kept*>(context);
  note_bytes(-kept->bytes);
  delete kept;
}

at::Tensor shaped(c10::Storage storage, c10::DispatchKey key, const at::Tensor& like) {
  auto result = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  auto* impl = result.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return result;
}

// A view of an inference tensor is an inference tensor.
at::Tensor view_of(const at::Tensor& base, const at::Tensor& like) {
  auto result = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(base.storage()), base.key_set(), like.dtype());
  result.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return result;
}

at::Tensor as_cpu(const at::Tensor& tensor) {
  const auto& storage = tensor.storage();
  auto* held = new c10::Storage(storage);
  auto seen = c10::Storage(c10::Storage::use_byte_size_t(), storage.nbytes(),
                           c10::DataPtr(held->mutable_data(), held, &drop_storage, Device(DeviceType::CPU)),
                           c10::GetCPUAllocator(), true);
  auto result = shaped(std::move(seen), c10::DispatchKey::CPU, tensor);
  if (tensor.is_conj()) result._set_conj(true);
  if (tensor.is_neg()) result._set_neg(true);
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) result.unsafeGetTensorImpl()->set_wrapped_number(true);
  return result;
}

c10::Storage storage_as_cuda(const at::Tensor& cpu, DeviceIndex index) {
  const auto& storage = cpu.storage();
  auto bytes = static_cast<int64_t>(storage.nbytes());
  note_bytes(bytes);
  auto* kept = new Kept{cpu, bytes};
  return c10::Storage(c10::Storage::use_byte_size_t(), storage.nbytes(),
                      c10::DataPtr(const_cast<void*>(storage.data()), kept, &drop_kept, Device(DeviceType::CUDA, index)),
                      &device_memory, true);
}

at::Tensor as_cuda(const at::Tensor& cpu, DeviceIndex index) {
  return shaped(storage_as_cuda(cpu, index), c10::DispatchKey::CUDA, cpu);
}

// ---- checks ---------------------------------------------------------------------------------------

const std::unordered_set<std::string> kMixes = {
    "aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize", "aten::set_", "aten::_index_put_impl_",
    "aten::index", "aten::index_put_", "aten::_unsafe_index", "aten::_unsafe_index_put", "aten::is_set_to",
    "aten::is_same_size", "aten::resize_as_"};
const std::unordered_set<std::string> kSyncs = {
    "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive",
    "aten::equal", "aten::bincount", "aten::repeat_interleave", "aten::_local_scalar_dense", "aten::argwhere"};
const std::unordered_set<std::string> kNorms = {
    "aten::native_layer_norm", "aten::native_group_norm", "aten::native_batch_norm"};

struct Arg {
  at::Tensor tensor;
  bool is_written;
  size_t place;
};

void check(const c10::FunctionSchema& schema, const std::vector<Arg>& args, const std::vector<at::Generator>& generators) {
  const auto& name = schema.name();
  Device first(DeviceType::CPU);
  for (const auto& arg : args) {
    if (!arg.tensor.is_cuda()) continue;
    if (first.type() == DeviceType::CPU) first = arg.tensor.device();
    TORCH_CHECK(arg.tensor.device() == first || kMixes.count(name),
                "Expected all tensors to be on the same device, but found at least two devices, ", first, " and ",
                arg.tensor.device(), "! (", name, ")");
  }
  if (first.type() == DeviceType::CPU) return;
  if (!kMixes.count(name)) {
    for (const auto& arg : args) {
      if (!arg.tensor.defined() || arg.tensor.is_cuda()) continue;
      bool wrong = arg.tensor.dim() > 0 || arg.is_written;
      TORCH_CHECK(!wrong || arg.tensor.is_meta(), "Expected all tensors to be on the same device, but found at least two devices, ",
                  first, " and ", arg.tensor.device(), "! (", name, ", argument ",
                  schema.arguments()[arg.place].name(), " of shape ", arg.tensor.sizes(), ")");
    }
  } else if (name == "aten::index" || name == "aten::_index_put_impl_" || name == "aten::index_put_") {
    TORCH_CHECK(args[0].tensor.is_cuda(), "indices should be either on cpu or on the same device as the indexed tensor (cpu)");
  }
  for (const auto& generator : generators) {
    TORCH_CHECK(generator.device().type() == DeviceType::CUDA, "Expected a 'cuda' device type for generator but found '",
                generator.device().type(), "' (", name, ")");
  }
  if (kNorms.count(name)) {
    at::ScalarType input = args[0].tensor.scalar_type();
    for (const auto& arg : args) {
      const auto& parameter = schema.arguments()[arg.place].name();
      if (!arg.tensor.defined() || (parameter != "weight" && parameter != "bias")) continue;
      TORCH_CHECK(arg.tensor.scalar_type() == input, "expected scalar type ", input, " but found ", arg.tensor.scalar_type(),
                  " (", name, ", ", parameter, ")");
    }
  }
}

// ---- every operation --------------------------------------------------------------------------------

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto count = schema.arguments().size();
  const auto begin = stack->size() - count;
  std::vector<Arg> args;
  std::vector<at::Generator> generators;
  DeviceIndex index = -1;
  auto add = [&](const at::Tensor& tensor, size_t place) {
    const auto* alias = schema.arguments()[place].alias_info();
    args.push_back({tensor, alias != nullptr && alias->isWrite(), place});
    if (tensor.defined() && tensor.is_cuda() && index < 0) index = tensor.device().index();
  };
  for (size_t place = 0; place < count; ++place) {
    const auto& value = (*stack)[begin + place];
    if (value.isTensor()) {
      add(value.toTensor(), place);
    } else if (value.isTensorList()) {
      for (const auto& one : value.toTensorVector()) add(one, place);
    } else if (value.isOptionalTensorList()) {
      for (const auto& one : value.toOptionalTensorVector()) if (one.has_value()) add(*one, place);
    } else if (value.isGenerator()) {
      generators.push_back(value.toGenerator());
    } else if (value.isDevice() && value.toDevice().is_cuda() && index < 0) {
      index = value.toDevice().index();
    }
  }
  if (index < 0) index = current;
  if (strict) check(schema, args, generators);
  ++launches;
  if (on_launch != nullptr && Py_IsInitialized()) {
    py::gil_scoped_acquire gil;
    (*on_launch)(schema.name());
  }
  if (kSyncs.count(schema.name())) note_sync("wait", schema.name(), 0);
  if (schema.name() == "aten::index" || schema.name() == "aten::_index_put_impl_") {
    for (const auto& arg : args) {
      if (arg.place == 1 && arg.tensor.defined() &&
          (arg.tensor.scalar_type() == at::kBool || arg.tensor.scalar_type() == at::kByte)) {
        note_sync("wait", schema.name() + " by a mask", 0);
      } else if (arg.place == 1 && arg.tensor.defined() && !arg.tensor.is_cuda()) {
        note_sync("h2d", schema.name() + " by a CPU index", arg.tensor.nbytes());
      }
    }
  }

  // Replace CUDA arguments by CPU tensors on the same memory.
  std::unordered_map<const void*, at::Tensor> originals;  // storage of an alias -> its tensor
  std::unordered_map<const void*, at::Tensor> seen;       // a tensor given twice has one alias
  std::vector<std::pair<at::Tensor, at::Tensor>> written;
  auto swap = [&](const at::Tensor& tensor, bool is_written) {
    if (!tensor.defined() || !tensor.is_cuda()) return tensor;
    auto* key = tensor.unsafeGetTensorImpl();
    auto found = seen.find(key);
    auto alias = found == seen.end() ? as_cpu(tensor) : found->second;
    seen[key] = alias;
    originals[alias.storage().unsafeGetStorageImpl()] = tensor;
    if (is_written) written.emplace_back(tensor, alias);
    return alias;
  };
  for (size_t place = 0; place < count; ++place) {
    auto& value = (*stack)[begin + place];
    const auto* alias_info = schema.arguments()[place].alias_info();
    bool is_written = alias_info != nullptr && alias_info->isWrite();
    if (value.isTensor()) {
      value = swap(value.toTensor(), is_written);
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const auto& one : value.toTensorVector()) list.push_back(swap(one, is_written));
      value = list;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const auto& one : value.toOptionalTensorVector())
        list.push_back(one.has_value() ? std::optional<at::Tensor>(swap(*one, is_written)) : std::nullopt);
      value = list;
    } else if (value.isDevice()) {
      value = Device(DeviceType::CPU);
    } else if (value.isGenerator()) {
      auto generator = value.toGenerator();
      if (generator.device().is_cuda())
        value = static_cast<DeviceGenerator*>(generator.unsafeGetGeneratorImpl())->inner;
    } else if (value.isNone() && schema.arguments()[place].name() == "generator") {
      value = static_cast<DeviceGenerator*>(default_generator(index).unsafeGetGeneratorImpl())->inner;
    }
  }
  {
    at::AutoDispatchBelowADInplaceOrView below;
    op.callBoxed(stack);
  }
  // A tensor that grew while it was written has new memory.
  for (auto& [tensor, alias] : written) {
    auto* impl = tensor.unsafeGetTensorImpl();
    bool has_moved = alias.storage().data() != tensor.storage().data() ||
                     alias.storage().nbytes() > tensor.storage().nbytes();
    if (has_moved) impl->set_storage_keep_dtype(storage_as_cuda(alias, tensor.device().index()));
    if (has_moved || !alias.sizes().equals(tensor.sizes()) || !alias.strides().equals(tensor.strides()))
      impl->set_sizes_and_strides(alias.sizes(), alias.strides(), alias.storage_offset());
  }
  auto back = [&](const at::Tensor& result) -> at::Tensor {
    if (!result.defined() || !result.device().is_cpu()) return result;
    for (auto& [tensor, alias] : written)
      if (alias.unsafeGetTensorImpl() == result.unsafeGetTensorImpl()) return tensor;
    for (auto& [key, alias] : seen)
      if (alias.unsafeGetTensorImpl() == result.unsafeGetTensorImpl())
        return originals[alias.storage().unsafeGetStorageImpl()];
    auto found = originals.find(result.storage().unsafeGetStorageImpl());
    if (found != originals.end())
      return view_of(found->second, result);
    return as_cuda(result, index);
  };
  const auto returns = schema.returns().size();
  for (size_t number = 0; number < returns; ++number) {
    auto& value = (*stack)[stack->size() - returns + number];
    if (value.isTensor()) {
      value = back(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const auto& one : value.toTensorVector()) list.push_back(back(one));
      value = list;
    }
  }
}

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
                 std::optional<Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  DeviceIndex index = device.has_value() && device->index() >= 0 ? device->index() : current;
  TORCH_CHECK(index < num_devices, "CUDA error: invalid device ordinal");
  at::AutoDispatchBelowADInplaceOrView below;
  auto options = at::TensorOptions().dtype(dtype).layout(layout).device(at::kCPU);
  return as_cuda(at::empty(C10_AS_INTARRAYREF_SLOW(size), options, format), index);
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout> layout, std::optional<Device> device, std::optional<bool>) {
  DeviceIndex index = device.has_value() && device->index() >= 0 ? device->index() : current;
  TORCH_CHECK(index < num_devices, "CUDA error: invalid device ordinal");
  at::AutoDispatchBelowADInplaceOrView below;
  auto options = at::TensorOptions().dtype(dtype).layout(layout).device(at::kCPU);
  return as_cuda(at::empty_strided(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), options), index);
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& src, bool non_blocking) {
  if (self.is_meta() || src.is_meta()) return self;
  at::AutoDispatchBelowADInplaceOrView below;
  if (self.is_cuda() && src.is_cuda()) {
    ++launches;
  } else if (self.is_cuda()) {
    bool waits = !(non_blocking && is_pinned(src.const_data_ptr()));
    if (waits && src.numel()) note_sync("h2d", is_pinned(src.const_data_ptr()) ? "pinned" : "pageable", src.nbytes());
  } else if (src.numel() && !(non_blocking && is_pinned(self.const_data_ptr()))) {
    note_sync("d2h", non_blocking ? "copy, non_blocking" : "copy", src.nbytes());
  }
  auto to = self.is_cuda() ? as_cpu(self) : self;
  to.copy_(src.is_cuda() ? as_cpu(src) : src);
  return self;
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source, c10::SymInt offset, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  std::vector<int64_t> strides;
  if (stride.size() == size.size()) {
    strides = C10_AS_INTARRAYREF_SLOW(stride).vec();
  } else {
    strides.assign(sizes.size(), 1);
    for (int64_t i = static_cast<int64_t>(sizes.size()) - 2; i >= 0; --i) strides[i] = strides[i + 1] * std::max<int64_t>(sizes[i + 1], 1);
  }
  impl->set_sizes_and_strides(sizes, strides, offset.guard_int(__FILE__, __LINE__));
  return self;
}

at::Tensor& set_source_storage(at::Tensor& self, at::Storage source) {
  auto size = static_cast<int64_t>(source.nbytes() / self.dtype().itemsize());
  std::vector<c10::SymInt> sizes{size}, strides{1};
  return set_storage(self, std::move(source), 0, sizes, strides);
}

at::Tensor& set_source_tensor(at::Tensor& self, const at::Tensor& source) {
  return set_storage(self, source.storage(), source.storage_offset(), c10::fromIntArrayRefSlow(source.sizes()),
                     c10::fromIntArrayRefSlow(source.strides()));
}

const at::Tensor& resize_(const at::Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  at::AutoDispatchBelowADInplaceOrView below;
  auto alias = as_cpu(self);
  alias.resize_(C10_AS_INTARRAYREF_SLOW(size), format);
  auto* impl = self.unsafeGetTensorImpl();
  if (alias.storage().data() != self.storage().data() || alias.storage().nbytes() > self.storage().nbytes())
    impl->set_storage_keep_dtype(storage_as_cuda(alias, self.device().index()));
  impl->set_sizes_and_strides(alias.sizes(), alias.strides(), alias.storage_offset());
  return self;
}

// The CPU has no softmax kernels that change the dtype.
at::Tensor softmax(const at::Tensor& self, int64_t dim, bool half_to_float) {
  at::AutoDispatchBelowADInplaceOrView below;
  ++launches;
  auto input = as_cpu(self);
  return as_cuda(at::_softmax(half_to_float ? input.to(at::kFloat) : input, dim, false), self.device().index());
}
at::Tensor log_softmax(const at::Tensor& self, int64_t dim, bool half_to_float) {
  at::AutoDispatchBelowADInplaceOrView below;
  ++launches;
  auto input = as_cpu(self);
  return as_cuda(at::_log_softmax(half_to_float ? input.to(at::kFloat) : input, dim, false), self.device().index());
}
at::Tensor softmax_backward(const at::Tensor& grad, const at::Tensor& output, int64_t dim, at::ScalarType dtype) {
  at::AutoDispatchBelowADInplaceOrView below;
  ++launches;
  auto given = as_cpu(grad);
  return as_cuda(at::_softmax_backward_data(given, as_cpu(output), dim, given.scalar_type()).to(dtype), grad.device().index());
}
at::Tensor log_softmax_backward(const at::Tensor& grad, const at::Tensor& output, int64_t dim, at::ScalarType dtype) {
  at::AutoDispatchBelowADInplaceOrView below;
  ++launches;
  auto given = as_cpu(grad);
  return as_cuda(at::_log_softmax_backward_data(given, as_cpu(output), dim, given.scalar_type()).to(dtype), grad.device().index());
}

void record_stream(at::Tensor&, at::Stream) {}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

#define BOXED(name) m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>())

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("copy_", &copy_);
  m.impl("set_.source_Storage", &set_source_storage);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Tensor", &set_source_tensor);
  m.impl("resize_", &resize_);
  m.impl("record_stream", &record_stream);
  m.impl("_softmax", &softmax);
  m.impl("_log_softmax", &log_softmax);
  m.impl("_softmax_backward_data", &softmax_backward);
  m.impl("_log_softmax_backward_data", &log_softmax_backward);
  // Composite kernels that would dispatch to CUDA's own kernels.
  BOXED("convolution");
  BOXED("convolution_backward");
  BOXED("native_layer_norm");
  BOXED("native_layer_norm_backward");
  BOXED("native_group_norm");
  BOXED("native_group_norm_backward");
  BOXED("native_dropout");
  BOXED("native_dropout_backward");
}

}  // namespace

#include "mock_nccl.hpp"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  c10::SetAllocator(c10::DeviceType::CUDA, &device_memory, 100);
  m.def("set_num_devices", [](int count) { num_devices = count; });
  m.def("set_strict", [](bool value) { strict = value; });
  m.def("set_device", [](int index) { if (index >= 0) current = static_cast<DeviceIndex>(index); });
  m.def("current_device", []() { return static_cast<int>(current); });
  m.def("launches", []() { return launches.load(); });
  m.def("bytes_now", []() { return bytes_now.load(); });
  m.def("bytes_peak", []() { return bytes_peak.load(); });
  m.def("reset_peak", []() { bytes_peak = bytes_now.load(); });
  m.def("has_hooks", []() { return at::detail::getCUDAHooks().hasCUDA(); });
  m.def("on_sync", [](py::object function) {
    on_sync = function.is_none() ? nullptr : new py::object(function);
  });
  m.def("on_launch", [](py::object function) {
    on_launch = function.is_none() ? nullptr : new py::object(function);
  });
  m.def("resize_storage", [](const c10::Storage& storage, size_t bytes) {
    auto made = device_memory.allocate(bytes);
    auto kept = std::min(bytes, storage.nbytes());
    if (kept > 0) memcpy(made.mutable_get(), storage.data(), kept);
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(made));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  });
  m.def("mock_nccl", [](const c10::intrusive_ptr<c10d::Backend>& gloo, double scale) {
    return c10::intrusive_ptr<c10d::Backend>(c10::make_intrusive<mock_nccl::MockNccl>(gloo, scale));
  });
  m.def("collectives", []() {
    std::lock_guard<std::mutex> guard(mock_nccl::names_lock);
    return mock_nccl::names;
  });
  m.def("default_generator", [](int index) { return default_generator(static_cast<DeviceIndex>(index)); });
}
