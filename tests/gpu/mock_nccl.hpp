// SPDX-License-Identifier: Apache-2.0
//
// A mock of NCCL for tensors of the mock CUDA device: gloo moves the bytes, in the same memory.
//
// Refused as by NCCL: tensors of other devices, and tensors that are not contiguous. Means,
// reduce-scatter and groups of sends and receives are added.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include <chrono>
#include <functional>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace mock_nccl {

using Tensors = std::vector<at::Tensor>;
using Works = std::vector<c10::intrusive_ptr<c10d::Work>>;
using Result = c10::intrusive_ptr<c10d::Work>;
using std::chrono::milliseconds;

inline std::mutex names_lock;
inline std::vector<std::string> names;  // of the collectives called, in this order

inline void note(const std::string& name) {
  std::lock_guard<std::mutex> guard(names_lock);
  names.push_back(name);
}

// Collectives of gloo, and what remains to be done once they have ended.
class MockWork final : public c10d::Work {
 public:
  MockWork(Works inner, Tensors outputs, std::function<void()> finish)
      : inner_(std::move(inner)), outputs_(std::move(outputs)), finish_(std::move(finish)) {}

  bool wait(milliseconds timeout = kNoTimeout) override {
    std::lock_guard<std::mutex> guard(lock_);
    if (is_done_) return true;
    for (auto& one : inner_) one->wait(timeout);
    if (finish_) finish_();
    is_done_ = true;
    return true;
  }
  bool isCompleted() override {
    {
      std::lock_guard<std::mutex> guard(lock_);
      if (is_done_) return true;
      for (auto& one : inner_)
        if (!one->isCompleted()) return false;
    }
    return wait();
  }
  bool isSuccess() const override { return is_done_; }
  void synchronize() override { wait(); }
  std::vector<at::Tensor> result() override { return outputs_; }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override {
    wait();
    auto type = c10::ListType::create(c10::TensorType::get());
    auto future = c10::make_intrusive<c10::ivalue::Future>(type);
    future->markCompleted(c10::IValue(outputs_));
    return future;
  }

 private:
  Works inner_;
  Tensors outputs_;
  std::function<void()> finish_;
  std::mutex lock_;
  bool is_done_ = false;
};

class MockNccl final : public c10d::Backend {
 public:
  // `scale` multiplies every time-out that the group is given.
  MockNccl(c10::intrusive_ptr<c10d::Backend> gloo, double scale)
      : Backend(gloo->getRank(), gloo->getSize()), gloo_(std::move(gloo)), scale_(scale) {}

  const std::string getBackendName() const override { return "nccl"; }
  bool supportsCoalescing() const override { return true; }
  void setTimeout(milliseconds timeout) override { gloo_->setTimeout(scaled(timeout)); }

  void startCoalescing() override {
    is_coalescing_ = true;
    coalesced_.clear();
  }
  Result endCoalescing() override {
    is_coalescing_ = false;
    return c10::make_intrusive<MockWork>(std::exchange(coalesced_, {}), Tensors{}, nullptr);
  }

  Result broadcast(Tensors& tensors, const c10d::BroadcastOptions& opts) override {
    note("broadcast");
    auto copies = seen(tensors);
    auto made = opts;
    made.timeout = scaled(opts.timeout);
    return work({gloo_->broadcast(copies, made)}, tensors, copies);
  }
  Result allreduce(Tensors& tensors, const c10d::AllreduceOptions& opts) override {
    note("allreduce");
    auto copies = seen(tensors);
    return work({reduced(copies, opts.reduceOp, opts.timeout)}, tensors, copies, opts.reduceOp);
  }
  Result allreduce_coalesced(Tensors& tensors, const c10d::AllreduceCoalescedOptions& opts) override {
    note("allreduce_coalesced");
    auto copies = seen(tensors);
    Works inner;
    for (auto& copy : copies) {
      Tensors one{copy};
      inner.push_back(reduced(one, opts.reduceOp, opts.timeout));
    }
    return work(inner, tensors, copies, opts.reduceOp);
  }
  Result reduce(Tensors& tensors, const c10d::ReduceOptions& opts) override {
    note("reduce");
    auto copies = seen(tensors);
    // NCCL leaves the other ranks' tensors as they are; gloo needs room to add up.
    if (getRank() != opts.rootRank)
      for (auto& copy : copies) copy = copy.clone();
    auto made = opts;
    made.reduceOp = plain(opts.reduceOp);
    made.timeout = scaled(opts.timeout);
    Works inner{gloo_->reduce(copies, made)};
    if (getRank() != opts.rootRank) return work(inner, {}, {});
    return work(inner, tensors, copies, opts.reduceOp);
  }

  Result allgather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions& opts) override {
    note("allgather");
    TORCH_CHECK(inputs.size() == 1 && outputs.size() == 1, "expected one tensor per process");
    std::vector<Tensors> copies{seen(outputs[0])};
    auto given = seen(inputs);
    auto made = opts;
    made.timeout = scaled(opts.timeout);
    return work({gloo_->allgather(copies, given, made)}, outputs[0], copies[0]);
  }
  Result _allgather_base(at::Tensor& output, at::Tensor& input, const c10d::AllgatherOptions& opts) override {
    note("_allgather_base");
    return work(gathered(output, input, opts.timeout), {output}, {});
  }
  Result allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs, const c10d::AllgatherOptions& opts) override {
    note("allgather_into_tensor_coalesced");
    Works inner;
    for (size_t i = 0; i < inputs.size(); ++i)
      for (auto& one : gathered(outputs[i], inputs[i], opts.timeout)) inner.push_back(one);
    return work(inner, outputs, {});
  }
  Result allgather_coalesced(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions& opts) override {
    note("allgather_coalesced");
    Works inner;
    Tensors all;
    for (size_t i = 0; i < inputs.size(); ++i) {
      Tensors of_one, given{contiguous(inputs[i])};
      for (auto& row : outputs) of_one.push_back(row[i]);
      for (auto& one : of_one) contiguous(one);
      std::vector<Tensors> copies{seen(of_one)};
      auto made = opts;
      made.timeout = scaled(opts.timeout);
      inner.push_back(gloo_->allgather(copies, given, made));
      all.insert(all.end(), of_one.begin(), of_one.end());
    }
    return work(inner, all, {});
  }

  Result reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs, const c10d::ReduceScatterOptions& opts) override {
    note("reduce_scatter");
    TORCH_CHECK(inputs.size() == 1 && outputs.size() == 1, "expected one tensor per process");
    Tensors flat;
    for (auto& one : seen(inputs[0])) flat.push_back(one.reshape({-1}));
    return scattered({outputs[0]}, {at::cat(flat)}, {offset(flat)}, opts);
  }
  Result _reduce_scatter_base(at::Tensor& output, at::Tensor& input, const c10d::ReduceScatterOptions& opts) override {
    note("_reduce_scatter_base");
    return scattered({output}, {contiguous(input).clone()}, {getRank() * output.numel()}, opts);
  }
  Result reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs, const c10d::ReduceScatterOptions& opts) override {
    note("reduce_scatter_tensor_coalesced");
    Tensors copies;
    std::vector<int64_t> offsets;
    for (size_t i = 0; i < inputs.size(); ++i) {
      copies.push_back(contiguous(inputs[i]).clone());
      offsets.push_back(getRank() * outputs[i].numel());
    }
    return scattered(outputs, copies, offsets, opts);
  }

  Result alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<int64_t>& output_sizes,
                       std::vector<int64_t>& input_sizes, const c10d::AllToAllOptions& opts) override {
    note("alltoall_base");
    auto target = contiguous(output), given = contiguous(input);
    auto made = opts;
    made.timeout = scaled(opts.timeout);
    return work({gloo_->alltoall_base(target, given, output_sizes, input_sizes, made)}, {output}, {});
  }
  Result alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& opts) override {
    note("alltoall");
    auto targets = seen(outputs, true), given = seen(inputs, true);
    auto rank = static_cast<size_t>(getRank());
    Works inner;
    targets[rank].copy_(given[rank]);
    for (int step = 1; step < getSize(); ++step) {  // each pair has one message each way
      auto other = static_cast<size_t>((getRank() + step) % getSize());
      Tensors one{given[other]};
      inner.push_back(gloo_->send(one, static_cast<int>(other), kAllToAll));
    }
    for (int step = 1; step < getSize(); ++step) {
      auto other = static_cast<size_t>((getRank() + step) % getSize());
      Tensors one{targets[other]};
      inner.push_back(gloo_->recv(one, static_cast<int>(other), kAllToAll));
    }
    return work(inner, outputs, {});
  }

  Result gather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::GatherOptions& opts) override {
    note("gather");
    auto given = seen(inputs, true);
    std::vector<Tensors> copies;
    for (auto& one : outputs) copies.push_back(seen(one, true));
    auto made = opts;
    made.timeout = scaled(opts.timeout);
    return work({gloo_->gather(copies, given, made)}, outputs.empty() ? Tensors{} : outputs[0], {});
  }
  Result scatter(Tensors& outputs, std::vector<Tensors>& inputs, const c10d::ScatterOptions& opts) override {
    note("scatter");
    auto targets = seen(outputs, true);
    std::vector<Tensors> copies;
    for (auto& one : inputs) copies.push_back(seen(one, true));
    auto made = opts;
    made.timeout = scaled(opts.timeout);
    return work({gloo_->scatter(targets, copies, made)}, outputs, {});
  }

  Result send(Tensors& tensors, int other, int tag) override {
    note("send");
    auto given = seen(tensors, true);
    return exchanged(gloo_->send(given, other, tag), {});
  }
  Result recv(Tensors& tensors, int other, int tag) override {
    note("recv");
    auto targets = seen(tensors, true);
    return exchanged(gloo_->recv(targets, other, tag), tensors);
  }
  Result barrier(const c10d::BarrierOptions& opts) override {
    note("barrier");
    c10d::BarrierOptions made;
    made.timeout = scaled(opts.timeout);
    return work({gloo_->barrier(made)}, {}, {});
  }

 private:
  static constexpr int kAllToAll = 0x7a2a;  // a tag of their own

  milliseconds scaled(milliseconds timeout) const {
    if (timeout == c10d::kUnsetTimeout) return timeout;
    return milliseconds(static_cast<int64_t>(static_cast<double>(timeout.count()) * scale_));
  }

  // The same memory as a tensor of the CPU.
  static at::Tensor view(const at::Tensor& tensor) {
    TORCH_CHECK(tensor.is_cuda(), "No backend type associated with device type ", tensor.device().type());
    TORCH_CHECK(tensor.device().index() == current, "a tensor of ", tensor.device(),
                " in the process of cuda:", static_cast<int>(current));
    return as_cpu(tensor.detach());
  }
  static at::Tensor contiguous(const at::Tensor& tensor) {
    TORCH_CHECK(tensor.is_contiguous(), "Tensors must be contiguous");
    return view(tensor);
  }
  // Views; of tensors in another order copies, which `work` copies back, unless they are refused.
  static Tensors seen(const Tensors& tensors, bool refuse = false) {
    Tensors found;
    for (auto& one : tensors) found.push_back(refuse ? contiguous(one) : view(one).contiguous());
    return found;
  }

  static c10d::ReduceOp plain(const c10d::ReduceOp& op) {
    return op.op_ == c10d::ReduceOp::AVG ? c10d::ReduceOp(c10d::ReduceOp::SUM) : op;
  }
  Result reduced(Tensors& copies, const c10d::ReduceOp& op, milliseconds timeout) {
    c10d::AllreduceOptions made;
    made.reduceOp = plain(op);
    made.timeout = scaled(timeout);
    return gloo_->allreduce(copies, made);
  }
  Works gathered(at::Tensor& output, at::Tensor& input, milliseconds timeout) {
    std::vector<Tensors> parts{contiguous(output).reshape({getSize(), -1}).unbind(0)};
    Tensors given{contiguous(input).reshape({-1})};
    c10d::AllgatherOptions made;
    made.timeout = scaled(timeout);
    return {gloo_->allgather(parts, given, made)};
  }
  // The sums of whole tensors, of which each rank keeps its part from an offset on.
  Result scattered(Tensors outputs, Tensors copies, std::vector<int64_t> offsets, const c10d::ReduceScatterOptions& opts) {
    Works inner;
    Tensors targets;
    for (auto& one : outputs) targets.push_back(contiguous(one));
    for (auto& copy : copies) {
      Tensors one{copy};
      inner.push_back(reduced(one, opts.reduceOp, opts.timeout));
    }
    bool average = opts.reduceOp.op_ == c10d::ReduceOp::AVG;
    auto finish = [=, size = getSize()]() {
      for (size_t i = 0; i < targets.size(); ++i) {
        auto part = copies[i].reshape({-1}).narrow(0, offsets[i], targets[i].numel());
        targets[i].copy_((average ? part / size : part).reshape(targets[i].sizes()));
      }
    };
    return c10::make_intrusive<MockWork>(inner, outputs, finish);
  }
  int64_t offset(const Tensors& parts) const {
    int64_t sum = 0;
    for (int i = 0; i < getRank(); ++i) sum += parts[static_cast<size_t>(i)].numel();
    return sum;
  }
  Result exchanged(Result inner, Tensors outputs) {
    auto made = work({inner}, outputs, {});
    if (is_coalescing_) coalesced_.push_back(made);
    return made;
  }
  Result work(Works inner, Tensors outputs, Tensors copies, c10d::ReduceOp op = c10d::ReduceOp::SUM) {
    bool average = op.op_ == c10d::ReduceOp::AVG;
    auto finish = [=, size = getSize()]() {
      for (size_t i = 0; i < copies.size(); ++i) {
        auto target = as_cpu(outputs[i].detach());
        if (average)
          target.copy_(copies[i] / size);
        else if (target.data_ptr() != copies[i].data_ptr())
          target.copy_(copies[i]);
      }
    };
    return c10::make_intrusive<MockWork>(std::move(inner), std::move(outputs), finish);
  }

  c10::intrusive_ptr<c10d::Backend> gloo_;
  double scale_;
  bool is_coalescing_ = false;
  Works coalesced_;
};

}  // namespace mock_nccl
