-- Sends the radiographs of each study to pneumoscope's DICOM node once the study is stable. The node sends its results
-- back to this archive, and then the study becomes stable again. So only radiographs are sent, never results. If the
-- node is out of reach, sending leaves a failed job, which resubmit.py tries again.

local NODE = 'pneumoscope' -- its name in "DicomModalities"
local RADIOGRAPHS = { CR = true, DX = true, DR = true, RG = true }

function OnStableStudy(study, tags, metadata)
  local resources = {}
  for _, series in ipairs(ParseJson(RestApiGet('/studies/' .. study .. '/series'))) do
    if RADIOGRAPHS[series['MainDicomTags']['Modality']] then
      table.insert(resources, series['ID'])
    end
  end
  if #resources > 0 then
    local job = { Resources = resources, Synchronous = false, Permissive = false }
    RestApiPost('/modalities/' .. NODE .. '/store', DumpJson(job, true))
  end
end
