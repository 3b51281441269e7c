// Places the files of one model in the layouts of its image.
#pragma once

#include <set>

#include "core/model/plan.h"

namespace kapsule::model {

// Used once, within the lifetime of its arguments.
class Planner {
 public:
  Planner(const oci::Reference& reference, const Layout& layout, const Modelfile& modelfile,
          Inputs inputs);

  // Paths are not checked yet.
  Plan Make();

 private:
  bool DecideOllama();
  // Names below models/<name>/ and below the hub's snapshot.
  std::string ModelName(const WeightFile& weight) const;
  std::string HubName(const WeightFile& weight) const;
  std::string PackModelfile() const;

  void PlanTexts();
  void PlanWeights();
  void PlanSmallInputs();
  void PlanOllamaDocuments();
  void PlanHubRefs();
  void AddHubLink(const std::string& name, std::vector<std::string>& links) const;

  const oci::Reference& reference_;
  const Layout& layout_;
  const Modelfile& modelfile_;
  Inputs inputs_;
  size_t models_ = 0, projectors_ = 0;
  bool ollama_ = false;
  std::string commit_;
  std::set<std::string> blobs_;  // paths that a document has already
  Plan plan_;
};

}  // namespace kapsule::model
